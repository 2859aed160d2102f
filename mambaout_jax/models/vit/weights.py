"""Parameter names of the Vision Transformer in PyTorch codebases."""

from mambaout_jax.models.key_format import KeyFormat, same_names

# timm 1.0.31, timm/models/vision_transformer.py; DeiT's own repository has the same names.
TIMM = KeyFormat(
    "timm",
    same_names(
        "cls_token",
        "pos_embed",
        "patch_embed.proj.*",
        "blocks.#.norm1.*",
        "blocks.#.attn.qkv.*",
        "blocks.#.attn.proj.*",
        "blocks.#.norm2.*",
        "blocks.#.mlp.fc1.*",
        "blocks.#.mlp.fc2.*",
        "norm.*",
        "fc_norm.*",
        "head.*",
    ),
)
