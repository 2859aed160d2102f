"""Options that all families of models have, and the check of any option."""

import numbers
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp

from mambaout_jax.checks import ConfigKey, Require
from mambaout_jax.models.errors import ModelError
from mambaout_jax.ops import KERNELS, SCAN_IMPLS

DTYPES = ("float32", "bfloat16")
REMAT = ("none", "save_matmuls", "full")
MIN_SIZE = 32
# Position embeddings of larger images would not fit the memory of a host.
MAX_SIZE = 16384

require = Require(ModelError)

# Every family has these; `model.num_classes` of a run comes from its dataset.
COMMON: Mapping[str, ConfigKey] = MappingProxyType(
    {
        "num_classes": ConfigKey(int, "0..1000000", 1000, "number of logits; 0 for the pooled features before them"),
        "in_chans": ConfigKey(int, "1..1024", 3, "channels of the images"),
        "drop_rate": ConfigKey(float, "0..<1", 0.0, "dropout rate before the classifier", inference="none"),
        # Rounding does not make another model.
        "dtype": ConfigKey(
            str, DTYPES, "float32", "dtype of matmuls and convolutions; parameters are float32", inference="none"
        ),
    }
)
# Families of many blocks have these as well.
BLOCKS: Mapping[str, ConfigKey] = MappingProxyType(
    {
        "drop_path_rate": ConfigKey(
            float,
            "0..<1",
            0.0,
            "stochastic depth rate of the last block; rates increase linearly with depth, from 0 in the first block",
            inference="none",
        ),
        "scan_blocks": ConfigKey(
            bool,
            None,
            False,
            "compile identical blocks once, as a loop body (docs/compile.md)",
            changeable=True,
            inference="none",
        ),
        "remat": ConfigKey(
            str,
            REMAT,
            "none",
            "what the backward pass recomputes instead of storing: nothing; all but matrix products, convolutions, "
            "scans and attention; or whole blocks (docs/compile.md)",
            changeable=True,
            inference="none",
        ),
    }
)
# Options that require a key in training if they are not 0.
DROP_RATES = ("drop_rate", "drop_path_rate")
OUT_INDICES = ConfigKey(
    tuple[int, ...] | None, "0..", None, "blocks that return feature maps; the last one if unset", inference="none"
)
SCAN_IMPL = ConfigKey(str, SCAN_IMPLS, "auto", "implementation of the scan (docs/selective_scan.md)", inference="none")
IMG_SIZE = ConfigKey(
    int | tuple[int, int], f"{MIN_SIZE}..{MAX_SIZE}", None, "side, or height and width, of the images in pixels"
)
# Preprocessing of the images; not arguments of the module. The defaults are those of the variant.
PREPROCESSING: Mapping[str, ConfigKey] = MappingProxyType(
    {
        "img_size": IMG_SIZE,
        "mean": ConfigKey(tuple[float, ...], "..", None, "mean of each channel in [0, 1], subtracted from the images"),
        "std": ConfigKey(tuple[float, ...], ">0..", None, "std of each channel, by which the images are divided"),
        "crop_pct": ConfigKey(float, ">0..1", None, "fraction of the resized side that the evaluation crop keeps"),
        "crop_mode": ConfigKey(str, ("center", "squash", "border"), None, "how evaluation images are cropped"),
        "interpolation": ConfigKey(str, ("bilinear", "bicubic"), None, "interpolation for resizing evaluation images"),
    }
)
# How a model is computed; not arguments of the module either.
EXECUTION: Mapping[str, ConfigKey] = MappingProxyType(
    {
        "kernels": ConfigKey(
            str,
            KERNELS,
            "auto",
            "kernels for TPUs instead of XLA's operations (docs/kernels.md). auto: where they apply and should be "
            "faster; xla: never; pallas: wherever they apply, on every platform",
            changeable=True,
            inference="none",
        ),
    }
)


def dtype_name(dtype: Any) -> Any:
    """Return the name of a dtype, such as "bfloat16" for jnp.bfloat16; strings and all other values unchanged."""
    if dtype is None or isinstance(dtype, str):
        return dtype
    try:
        return jnp.dtype(dtype).name
    except TypeError:
        return dtype


def plain_integers(value: Any) -> Any:
    """Return an integer of NumPy as an int, a list or tuple as a tuple of such values, and other values unchanged."""
    if isinstance(value, tuple | list):
        return tuple(map(plain_integers, value))
    return int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else value
