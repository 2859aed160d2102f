"""Names that PyTorch programs give to the parameters of a family: data, which `state_dict` applies in both directions.

A new program for a family is a table here, and nothing else. A new family is its tables and its `TASK_AXES`; for its
variants to be told without a name, `identity` also has to read its options from shapes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from mambaout_jax.models import MambaBlock, MambaOut, VisionTransformer


@dataclass(frozen=True)
class KeyTable:
    """Say how a program names the layers of a family.

    Args:
        dialect: the program, as people name it.
        family: whose layers these are.
        layers: the program's name for each of ours, which are timm's; `*` stands for a number and keeps its place
            among the others, and an empty name for the model itself. What a layer's parameters are called (weight,
            bias, gamma) is the same on both sides.
        fixed: options of the family that the program has one value for.
    """

    dialect: str
    family: type
    layers: Mapping[str, str]
    fixed: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


_TIMM_MAMBAOUT = (
    "stem.conv1",
    "stem.norm1",
    "stem.conv2",
    "stem.norm2",
    "stages.*.downsample.conv",
    "stages.*.downsample.norm",
    "stages.*.blocks.*.norm",
    "stages.*.blocks.*.fc1",
    "stages.*.blocks.*.conv",
    "stages.*.blocks.*.ssm.*",
    "stages.*.blocks.*.ssm.*.x_proj",
    "stages.*.blocks.*.ssm.*.dt_proj",
    "stages.*.blocks.*.fc2",
    "stages.*.blocks.*.ls",
    "head.norm",
    "head.pre_logits.fc",
    "head.pre_logits.norm",
    "head.fc",
)

_TIMM_VIT = (
    "",  # cls_token and pos_embed
    "patch_embed.proj",
    "blocks.*.norm1",
    "blocks.*.attn.qkv",
    "blocks.*.attn.proj",
    "blocks.*.norm2",
    "blocks.*.mlp.fc1",
    "blocks.*.mlp.fc2",
    "norm",
    "fc_norm",
    "head",
)

KEY_TABLES = (
    # timm 1.0.31, timm/models/mambaout.py; it has no `ssm`, whose names continue its own.
    KeyTable("timm", MambaOut, {name: name for name in _TIMM_MAMBAOUT}),
    # github.com/yuweihao/MambaOut at 9f2f2343, models/mambaout.py.
    KeyTable(
        "mambaout",
        MambaOut,
        {
            "stem.conv1": "downsample_layers.0.conv1",
            "stem.norm1": "downsample_layers.0.norm1",
            "stem.conv2": "downsample_layers.0.conv2",
            "stem.norm2": "downsample_layers.0.norm2",
            "stages.*.downsample.conv": "downsample_layers.*.conv",
            "stages.*.downsample.norm": "downsample_layers.*.norm",
            "stages.*.blocks.*.norm": "stages.*.*.norm",
            "stages.*.blocks.*.fc1": "stages.*.*.fc1",
            "stages.*.blocks.*.conv": "stages.*.*.conv",
            "stages.*.blocks.*.fc2": "stages.*.*.fc2",
            "head.norm": "norm",
            "head.pre_logits.fc": "head.fc1",
            "head.pre_logits.norm": "head.norm",
            "head.fc": "head.fc2",
        },
        fixed={
            "act_layer": "gelu",
            "expansion_ratio": 8 / 3,
            "stem_mid_norm": True,
            "ls_init_value": None,
            "downsample": "conv",
            "head_fn": "default",
            "token_mixer": "conv",
        },
    ),
    # timm 1.0.31, timm/models/vision_transformer.py; DeiT's own repository has the same names.
    KeyTable("timm", VisionTransformer, {name: name for name in _TIMM_VIT}),
)

# github.com/state-spaces/mamba at e9594ce1, mamba_ssm/modules/mamba_simple.py: a block, which is no model by itself and
# is not looked for among them.
MAMBA_BLOCK_TABLE = KeyTable(
    "mamba_ssm",
    MambaBlock,
    {
        "in_proj": "in_proj",
        "conv1d": "conv1d",
        "ssm": "",
        "ssm.x_proj": "x_proj",
        "ssm.dt_proj": "dt_proj",
        "out_proj": "out_proj",
    },
)

# Options that timm itself has one value for, of each family that it names the layers of: a model with another one keeps
# names in timm's manner, and timm cannot build it.
BUILT_BY_TIMM: Mapping[type, Mapping[str, Any]] = MappingProxyType(
    {MambaOut: {"token_mixer": "conv"}, VisionTransformer: {"attention": "full"}}
)

# Of each family, under our names, the tensor and its axis that tell an option which every dataset has another value of.
TASK_AXES: Mapping[type, Mapping[str, tuple[str, int]]] = MappingProxyType(
    {
        MambaOut: {"num_classes": ("head.fc.weight", 0), "in_chans": ("stem.conv1.weight", 1)},
        VisionTransformer: {"num_classes": ("head.weight", 0), "in_chans": ("patch_embed.proj.weight", 1)},
    }
)

# Axes of a PyTorch parameter in the order that ours have, by the parameter's own name and rank: a matrix is
# (out, in) there, a kernel (out, in, length) or (out, in, height, width). What is not named here stays as it is.
LAYOUTS: Mapping[tuple[str, int], tuple[int, ...]] = MappingProxyType(
    {("weight", 2): (1, 0), ("weight", 3): (2, 1, 0), ("weight", 4): (2, 3, 1, 0)}
)
