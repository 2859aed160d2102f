"""Parameter names of VMamba in PyTorch."""

from types import MappingProxyType

from mambaout_jax.models.key_format import KeyFormat, Rule, same_names

# Weights that some versions of the code store as those of 1x1 convolutions.
_LINEAR = (
    "layers.#.blocks.#.op.in_proj.weight",
    "layers.#.blocks.#.op.out_proj.weight",
    "layers.#.blocks.#.mlp.fc1.weight",
    "layers.#.blocks.#.mlp.fc2.weight",
)

# github.com/MzeroMiko/VMamba at 2ed52ead, classification/models/vmamba.py.
ORIGINAL = KeyFormat(
    "vmamba",
    (
        Rule("patch_embed.0.*", "patch_embed.conv1.*"),
        Rule("patch_embed.2.*", "patch_embed.norm1.*"),
        Rule("patch_embed.5.*", "patch_embed.conv2.*"),
        Rule("patch_embed.7.*", "patch_embed.norm2.*"),
        *same_names(
            "layers.#.blocks.#.norm.*",
            "layers.#.blocks.#.op.*",
            "layers.#.blocks.#.op.in_proj.*",
            "layers.#.blocks.#.op.conv2d.*",
            "layers.#.blocks.#.op.out_norm.*",
            "layers.#.blocks.#.op.out_proj.*",
            "layers.#.blocks.#.norm2.*",
            "layers.#.blocks.#.mlp.fc1.*",
            "layers.#.blocks.#.mlp.fc2.*",
            "layers.#.downsample.norm.*",
            "layers.#.downsample.reduction.*",
        ),
        Rule("layers.#.downsample.1.*", "layers.#.downsample.conv.*"),
        Rule("layers.#.downsample.3.*", "layers.#.downsample.post_norm.*"),
        Rule("classifier.norm.*", "head.norm.*"),
        Rule("classifier.head.*", "head.fc.*"),
    ),
    linear=_LINEAR,
)

# Branch 20240128-archive of the same repository; the names of the published weights of the first models.
ARCHIVE = KeyFormat(
    "vmamba_archive",
    (
        Rule("patch_embed.proj.*", "patch_embed.conv1.*"),
        Rule("patch_embed.norm.*", "patch_embed.norm1.*"),
        Rule("layers.#.blocks.#.ln_1.*", "layers.#.blocks.#.norm.*"),
        Rule("layers.#.blocks.#.self_attention.*", "layers.#.blocks.#.op.*"),
        Rule("layers.#.blocks.#.self_attention.in_proj.*", "layers.#.blocks.#.op.in_proj.*"),
        Rule("layers.#.blocks.#.self_attention.conv2d.*", "layers.#.blocks.#.op.conv2d.*"),
        Rule("layers.#.blocks.#.self_attention.out_norm.*", "layers.#.blocks.#.op.out_norm.*"),
        Rule("layers.#.blocks.#.self_attention.out_proj.*", "layers.#.blocks.#.op.out_proj.*"),
        *same_names("layers.#.downsample.norm.*", "layers.#.downsample.reduction.*"),
        Rule("norm.*", "head.norm.*"),
        Rule("head.*", "head.fc.*"),
    ),
    fixed=MappingProxyType(
        {"forward_type": "v0", "mlp_ratio": 0.0, "patchembed_version": "v1", "downsample_version": "v1"}
    ),
)
