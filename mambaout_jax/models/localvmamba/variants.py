"""The named variants of LocalVMamba. Options and accuracies: github.com/hunto/LocalMamba at 75e5d1f0."""

from collections.abc import Mapping
from types import MappingProxyType

from mambaout_jax.models.family import Checkpoint, Variant
from mambaout_jax.models.localvmamba.model import SMALL, TINY

# Assumed: the default of the original constructor. The published configuration, of localvim_tiny, has 0.1.
_RECIPE = {"model.drop_path_rate": 0.2}

# The weights of the tiny model are not published; the README announces them.
VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "localvmamba_tiny": Variant(
            {"depths": (2, 2, 9, 2), "directions": TINY},
            crop_pct=0.875,
            top1={224: 82.7},
            recipe=_RECIPE,
            params=25_527_160,
            macs=5_622_564_864,
        ),
        "localvmamba_small": Variant(
            {"depths": (2, 2, 27, 2), "directions": SMALL},
            crop_pct=0.875,
            top1={224: 83.7},
            checkpoint=Checkpoint(
                "https://github.com/hunto/LocalMamba/releases/download/v1.0.0/local_vssm_small.ckpt", None
            ),
            recipe=_RECIPE,
            params=49_748_536,
            macs=11_203_000_320,
        ),
    }
)
