"""Parameter names of MambaOut in PyTorch codebases."""

from types import MappingProxyType

from mambaout_jax.models.key_format import KeyFormat, Rule, same_names

# timm 1.0.31, timm/models/mambaout.py. timm has no `ssm`; these names extend timm's.
TIMM = KeyFormat(
    "timm",
    same_names(
        "stem.conv1.*",
        "stem.norm1.*",
        "stem.conv2.*",
        "stem.norm2.*",
        "stages.#.downsample.conv.*",
        "stages.#.downsample.norm.*",
        "stages.#.blocks.#.norm.*",
        "stages.#.blocks.#.fc1.*",
        "stages.#.blocks.#.conv.*",
        "stages.#.blocks.#.ssm.#.*",
        "stages.#.blocks.#.ssm.#.x_proj.*",
        "stages.#.blocks.#.ssm.#.dt_proj.*",
        "stages.#.blocks.#.fc2.*",
        "stages.#.blocks.#.ls.*",
        "head.norm.*",
        "head.pre_logits.fc.*",
        "head.pre_logits.norm.*",
        "head.fc.*",
    ),
)

# github.com/yuweihao/MambaOut at 9f2f2343, models/mambaout.py.
ORIGINAL = KeyFormat(
    "mambaout",
    (
        Rule("downsample_layers.0.conv1.*", "stem.conv1.*"),
        Rule("downsample_layers.0.norm1.*", "stem.norm1.*"),
        Rule("downsample_layers.0.conv2.*", "stem.conv2.*"),
        Rule("downsample_layers.0.norm2.*", "stem.norm2.*"),
        Rule("downsample_layers.#.conv.*", "stages.#.downsample.conv.*"),
        Rule("downsample_layers.#.norm.*", "stages.#.downsample.norm.*"),
        Rule("stages.#.#.norm.*", "stages.#.blocks.#.norm.*"),
        Rule("stages.#.#.fc1.*", "stages.#.blocks.#.fc1.*"),
        Rule("stages.#.#.conv.*", "stages.#.blocks.#.conv.*"),
        Rule("stages.#.#.fc2.*", "stages.#.blocks.#.fc2.*"),
        Rule("norm.*", "head.norm.*"),
        Rule("head.fc1.*", "head.pre_logits.fc.*"),
        Rule("head.norm.*", "head.pre_logits.norm.*"),
        Rule("head.fc2.*", "head.fc.*"),
    ),
    fixed=MappingProxyType(
        {
            "act_layer": "gelu",
            "expansion_ratio": 8 / 3,
            "stem_mid_norm": True,
            "ls_init_value": None,
            "downsample": "conv",
            "head_fn": "default",
            "token_mixer": "conv",
        }
    ),
)
