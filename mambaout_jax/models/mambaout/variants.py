"""The named variants of MambaOut. Options and accuracies: timm 1.0.31, mambaout.py and results-imagenet.csv."""

from collections.abc import Mapping
from types import MappingProxyType

from mambaout_jax.models.family import Checkpoint, Variant


def _original(name: str) -> Checkpoint:
    """Return the weights that the authors published; timm states their licence."""
    return Checkpoint(f"https://github.com/yuweihao/MambaOut/releases/download/model/{name}.pth", "Apache-2.0")


def _timm(name: str) -> Checkpoint:
    return Checkpoint(f"https://huggingface.co/timm/{name}/resolve/main/model.safetensors", "Apache-2.0")


_NARROW = {"dims": (48, 96, 192, 288)}
_MIDDLE = {"dims": (96, 192, 384, 576)}
_WIDE = {"dims": (128, 256, 512, 768)}
_MAMBA = {"token_mixer": "conv_ssm", "scan_order": "causal"}
# timm 1.0.31 has ls_init_value 1e-6 here but does not pass it on; its LayerScale starts at 1e-5.
_RW = {"stem_mid_norm": False, "downsample": "conv_nf", "ls_init_value": 1e-5, "head_fn": "norm_mlp"}

VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "mambaout_femto": Variant(
            {"depths": (3, 3, 9, 3), **_NARROW}, top1={224: 78.880, 288: 79.912}, checkpoint=_original("mambaout_femto")
        ),
        "mambaout_kobe": Variant(
            {"depths": (3, 3, 15, 3), **_NARROW}, top1={224: 79.986, 288: 81.064}, checkpoint=_original("mambaout_kobe")
        ),
        "mambaout_tiny": Variant(
            {"depths": (3, 3, 9, 3), **_MIDDLE}, top1={224: 82.742, 288: 83.452}, checkpoint=_original("mambaout_tiny")
        ),
        "mambaout_small": Variant(
            {"depths": (3, 4, 27, 3), **_MIDDLE},
            top1={224: 84.094, 288: 84.512},
            checkpoint=_original("mambaout_small"),
        ),
        "mambaout_base": Variant(
            {"depths": (3, 4, 27, 3), **_WIDE}, top1={224: 84.194, 288: 84.730}, checkpoint=_original("mambaout_base")
        ),
        "mamba_femto": Variant({"depths": (3, 3, 9, 3), **_NARROW, **_MAMBA}),
        "mamba_kobe": Variant({"depths": (3, 3, 15, 3), **_NARROW, **_MAMBA}),
        "mamba_tiny": Variant({"depths": (3, 3, 9, 3), **_MIDDLE, **_MAMBA}),
        "mamba_small": Variant({"depths": (3, 4, 27, 3), **_MIDDLE, **_MAMBA}),
        "mamba_base": Variant({"depths": (3, 4, 27, 3), **_WIDE, **_MAMBA}),
        "mambaout_small_rw": Variant(
            {"depths": (3, 4, 27, 3), **_MIDDLE, **_RW},
            top1={224: 84.040, 288: 84.604},
            checkpoint=_timm("mambaout_small_rw.sw_e450_in1k"),
        ),
        "mambaout_base_short_rw": Variant(
            {"depths": (3, 3, 25, 3), **_WIDE, **_RW, "expansion_ratio": 3.0, "conv_ratio": 1.25},
            crop_pct=0.95,
            top1={224: 84.364, 288: 84.842},
            checkpoint=_timm("mambaout_base_short_rw.sw_e500_in1k"),
        ),
        "mambaout_base_tall_rw": Variant(
            {"depths": (3, 4, 30, 3), **_WIDE, **_RW, "expansion_ratio": 2.5, "conv_ratio": 1.25},
            crop_pct=0.95,
            top1={224: 84.436, 288: 84.988},
            checkpoint=_timm("mambaout_base_tall_rw.sw_e500_in1k"),
        ),
        "mambaout_base_wide_rw": Variant(
            {
                "depths": (3, 4, 27, 3),
                **_WIDE,
                **_RW,
                "expansion_ratio": 3.0,
                "conv_ratio": 1.5,
                "act_layer": "silu",
            },
            crop_pct=0.95,
            top1={224: 84.448, 288: 84.966},
            checkpoint=_timm("mambaout_base_wide_rw.sw_e500_in1k"),
        ),
        "mambaout_base_plus_rw": Variant(
            {
                "depths": (3, 4, 30, 3),
                **_WIDE,
                **_RW,
                "expansion_ratio": 3.0,
                "conv_ratio": 1.5,
                "act_layer": "silu",
            },
            top1={224: 86.642, 288: 86.916},
            checkpoint=_timm("mambaout_base_plus_rw.sw_e150_in12k_ft_in1k"),
        ),
        "test_mambaout": Variant(
            {
                "depths": (1, 1, 3, 1),
                "dims": (16, 32, 48, 64),
                **_RW,
                "expansion_ratio": 3.0,
                "act_layer": "silu",
            },
            size=160,
        ),
    }
)
