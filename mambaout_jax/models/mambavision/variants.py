"""The named variants of MambaVision. Accuracies and weights: github.com/NVlabs/MambaVision, README.md at 6c4f4a07."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from mambaout_jax.models.family import Checkpoint, Variant

_LICENSE = "CC-BY-NC-SA-4.0"  # of all published weights


def _published(repository: str, name: str) -> Checkpoint:
    url = f"https://huggingface.co/nvidia/MambaVision-{repository}/resolve/main/mambavision_{name}.pth.tar"
    return Checkpoint(url, _LICENSE)


def _windows(size: int) -> dict[str, Any]:
    """Return windows as large as the maps of the last two stages."""
    return {"window_size": (8, 8, size // 16, size // 32)}


_HEADS = {"num_heads": (2, 4, 8, 16)}
_MORE_HEADS = {"num_heads": (4, 8, 16, 32)}
_SCALED = {"layer_scale": 1e-5}
_T = {"dim": 80, "in_dim": 32, "depths": (1, 3, 8, 4), **_HEADS}
_T2 = {"dim": 80, "in_dim": 32, "depths": (1, 3, 11, 4), **_HEADS}
_S = {"dim": 96, "in_dim": 64, "depths": (3, 3, 7, 5), **_HEADS}
_B = {"dim": 128, "in_dim": 64, "depths": (3, 3, 10, 5), **_HEADS, **_SCALED}
_L = {"dim": 196, "in_dim": 64, "depths": (3, 3, 10, 5), **_MORE_HEADS, **_SCALED}
_L2 = {"dim": 196, "in_dim": 64, "depths": (3, 3, 12, 5), **_MORE_HEADS, **_SCALED}
_L3 = {"dim": 256, "in_dim": 64, "depths": (3, 3, 20, 10), **_MORE_HEADS, **_SCALED}
_LARGE_IMAGES = {"size": 512, "crop_pct": 0.93, "crop_mode": "squash"}

# "21k" was pretrained on ImageNet-21k and fine-tuned on ImageNet-1k.
VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "mambavision_t": Variant(
            _T,
            top1={224: 82.3},
            checkpoint=_published("T-1K", "tiny_1k"),
            params=31_794_248,
            macs=4_575_016_576,
            recipe={"loss.mesa": 0.5},
        ),
        "mambavision_t2": Variant(
            _T2,
            crop_pct=0.98,
            top1={224: 82.7},
            checkpoint=_published("T2-1K", "tiny2_1k"),
            params=35_104_008,
            macs=5_249_946_496,
            recipe={"loss.mesa": 0.75},
        ),
        "mambavision_s": Variant(
            _S,
            crop_pct=0.93,
            top1={224: 83.3},
            checkpoint=_published("S-1K", "small_1k"),
            params=50_140_584,
            macs=7_591_499_904,
        ),
        "mambavision_b": Variant(
            _B,
            top1={224: 84.2},
            checkpoint=_published("B-1K", "base_1k"),
            params=97_685_288,
            macs=15_184_206_336,
            recipe={"optim.warmup_epochs": 35, "optim.weight_decay": 0.075, "model.drop_path_rate": 0.3},
        ),
        "mambavision_b_21k": Variant(
            _B,
            top1={224: 84.9},
            checkpoint=_published("B-21K", "base_21k"),
            params=97_685_288,
            macs=15_184_206_336,
            recipe=None,
        ),
        "mambavision_l": Variant(
            _L,
            top1={224: 85.0},
            checkpoint=_published("L-1K", "large_1k"),
            params=227_961_048,
            macs=35_193_130_448,
            recipe={"optim.weight_decay": 0.12, "loss.mesa": 6.0, "model.drop_path_rate": 0.3},
        ),
        "mambavision_l_21k": Variant(
            _L,
            top1={224: 86.1},
            checkpoint=_published("L-21K", "large_21k"),
            params=227_961_048,
            macs=35_193_130_448,
            recipe=None,
        ),
        "mambavision_l2": Variant(
            _L2,
            top1={224: 85.3},
            checkpoint=_published("L2-1K", "large2_1k"),
            params=241_554_824,
            macs=37_918_130_992,
            recipe={"optim.weight_decay": 0.12, "loss.mesa": 6.0, "model.drop_path_rate": 0.3},
        ),
        "mambavision_l2_512_21k": Variant(
            {**_L2, **_windows(512)},
            **_LARGE_IMAGES,
            top1={512: 87.3},
            checkpoint=_published("L2-512-21K", "L2_21k_240m_512"),
            params=241_554_824,
            macs=206_405_410_048,
            recipe=None,
        ),
        "mambavision_l3_256_21k": Variant(
            {**_L3, **_windows(256)},
            size=256,
            top1={256: 87.3},
            checkpoint=_published("L3-256-21K", "L3_21k_740m_256"),
            params=739_570_472,
            macs=123_656_486_912,
            recipe=None,
        ),
        "mambavision_l3_512_21k": Variant(
            {**_L3, **_windows(512)},
            **_LARGE_IMAGES,
            top1={512: 88.1},
            checkpoint=_published("L3-512-21K", "L3_21k_740m_512"),
            params=739_570_472,
            macs=511_732_563_968,
            recipe=None,
        ),
    }
)
