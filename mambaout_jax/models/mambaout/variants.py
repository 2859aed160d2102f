"""The named variants of MambaOut. Options and accuracies: timm 1.0.31, mambaout.py and results-imagenet.csv."""

from collections.abc import Mapping
from types import MappingProxyType

from mambaout_jax.models.family import Checkpoint, Variant


def _original(name: str) -> Checkpoint:
    """Return the weights that the authors published; timm states their license."""
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
            {"depths": (3, 3, 9, 3), **_NARROW},
            top1={224: 78.880, 288: 79.912},
            params=7_304_536,
            macs=1_147_984_992,
            checkpoint=_original("mambaout_femto"),
        ),
        "mambaout_kobe": Variant(
            {"depths": (3, 3, 15, 3), **_NARROW},
            top1={224: 79.986, 288: 81.064},
            params=9_141_208,
            macs=1_505_865_312,
            checkpoint=_original("mambaout_kobe"),
        ),
        "mambaout_tiny": Variant(
            {"depths": (3, 3, 9, 3), **_MIDDLE},
            top1={224: 82.742, 288: 83.452},
            params=26_545_096,
            macs=4_469_655_744,
            checkpoint=_original("mambaout_tiny"),
            recipe={"model.drop_path_rate": 0.2},
        ),
        "mambaout_small": Variant(
            {"depths": (3, 4, 27, 3), **_MIDDLE},
            top1={224: 84.094, 288: 84.512},
            params=48_488_072,
            macs=8_936_423_616,
            checkpoint=_original("mambaout_small"),
            recipe={"model.drop_path_rate": 0.4},
        ),
        "mambaout_base": Variant(
            {"depths": (3, 4, 27, 3), **_WIDE},
            top1={224: 84.194, 288: 84.730},
            params=84_813_092,
            macs=15_794_325_760,
            checkpoint=_original("mambaout_base"),
            recipe={"model.drop_path_rate": 0.6},
        ),
        "mamba_femto": Variant({"depths": (3, 3, 9, 3), **_NARROW, **_MAMBA}, params=7_532_632, macs=1_350_393_408),
        "mamba_kobe": Variant({"depths": (3, 3, 15, 3), **_NARROW, **_MAMBA}, params=9_454_552, macs=1_753_657_920),
        "mamba_tiny": Variant(
            {"depths": (3, 3, 9, 3), **_MIDDLE, **_MAMBA},
            params=27_155_080,
            macs=4_904_615_808,
            recipe={"model.drop_path_rate": 0.2},
        ),
        "mamba_small": Variant(
            {"depths": (3, 4, 27, 3), **_MIDDLE, **_MAMBA},
            params=49_789_640,
            macs=9_706_459_008,
            recipe={"model.drop_path_rate": 0.4},
        ),
        "mamba_base": Variant(
            {"depths": (3, 4, 27, 3), **_WIDE, **_MAMBA},
            params=86_834_724,
            macs=16_878_340_608,
            recipe={"model.drop_path_rate": 0.6},
        ),
        "mambaout_small_rw": Variant(
            {"depths": (3, 4, 27, 3), **_MIDDLE, **_RW},
            top1={224: 84.040, 288: 84.604},
            params=48_495_560,
            macs=8_936_423_616,
            checkpoint=_timm("mambaout_small_rw.sw_e450_in1k"),
            recipe=None,  # timm does not publish the recipes of *_rw
        ),
        "mambaout_base_short_rw": Variant(
            {"depths": (3, 3, 25, 3), **_WIDE, **_RW, "expansion_ratio": 3.0, "conv_ratio": 1.25},
            crop_pct=0.95,
            top1={224: 84.364, 288: 84.842},
            params=88_827_688,
            macs=16_280_785_216,
            checkpoint=_timm("mambaout_base_short_rw.sw_e500_in1k"),
            recipe=None,
        ),
        "mambaout_base_tall_rw": Variant(
            {"depths": (3, 4, 30, 3), **_WIDE, **_RW, "expansion_ratio": 2.5, "conv_ratio": 1.25},
            crop_pct=0.95,
            top1={224: 84.436, 288: 84.988},
            params=86_481_448,
            macs=16_116_684_608,
            checkpoint=_timm("mambaout_base_tall_rw.sw_e500_in1k"),
            recipe=None,
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
            params=94_448_104,
            macs=17_751_798_144,
            checkpoint=_timm("mambaout_base_wide_rw.sw_e500_in1k"),
            recipe=None,
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
            params=101_656_552,
            macs=19_161_191_808,
            checkpoint=_timm("mambaout_base_plus_rw.sw_e150_in12k_ft_in1k"),
            recipe=None,
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
            params=447_560,
            macs=24_595_584,
            recipe=None,
        ),
    }
)
