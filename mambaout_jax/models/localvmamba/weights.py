"""Parameter names of LocalVMamba in PyTorch."""

from mambaout_jax.models.key_format import KeyFormat, Rule, same_names

# github.com/hunto/LocalMamba at 75e5d1f0, classification/lib/models/local_vmamba.py.
ORIGINAL = KeyFormat(
    "localvmamba",
    (
        Rule("patch_embed.0.*", "patch_embed.conv1.*"),
        Rule("patch_embed.2.*", "patch_embed.norm1.*"),
        Rule("layers.#.blocks.#.op.multi_scan.attn.norm.*", "layers.#.blocks.#.op.scan_gate.norm.*"),
        Rule("layers.#.blocks.#.op.multi_scan.attn.global_reduce.*", "layers.#.blocks.#.op.scan_gate.global_reduce.*"),
        Rule(
            "layers.#.blocks.#.op.multi_scan.attn.channel_select.*", "layers.#.blocks.#.op.scan_gate.channel_select.*"
        ),
        *same_names(
            "layers.#.blocks.#.norm.*",
            "layers.#.blocks.#.op.*",
            "layers.#.blocks.#.op.in_proj.*",
            "layers.#.blocks.#.op.conv2d.*",
            "layers.#.blocks.#.op.out_norm.*",
            "layers.#.blocks.#.op.out_proj.*",
            "layers.#.downsample.norm.*",
            "layers.#.downsample.reduction.*",
        ),
        Rule("classifier.norm.*", "head.norm.*"),
        Rule("classifier.head.*", "head.fc.*"),
    ),
)
