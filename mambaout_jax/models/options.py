"""Options that all families of models have, and the check of any option."""

from collections.abc import Mapping
from types import MappingProxyType

from mambaout_jax.checks import Key, Require
from mambaout_jax.models.errors import ModelError

DTYPES = ("float32", "bfloat16")
REMAT = ("none", "save_matmuls", "full")
MIN_SIZE = 32
# Position embeddings of larger images would not fit the memory of a host.
MAX_SIZE = 16384

require = Require(ModelError)

# Every family has these; `model.num_classes` of a run comes from its dataset.
COMMON: Mapping[str, Key] = MappingProxyType(
    {
        "num_classes": Key(int, "1..1000000", 1000, "number of logits"),
        "in_chans": Key(int, "1..1024", 3, "channels of the images"),
        "drop_rate": Key(float, "0..<1", 0.0, "dropout rate before the classifier"),
        "dtype": Key(str, DTYPES, "float32", "dtype of matmuls and convolutions; parameters are float32"),
    }
)
# Families of many blocks have these as well.
BLOCKS: Mapping[str, Key] = MappingProxyType(
    {
        "drop_path_rate": Key(float, "0..<1", 0.0, "stochastic depth rate of the last block; it rises linearly from 0"),
        "scan_blocks": Key(
            bool, None, False, "compile identical blocks once, as a loop body (docs/compile.md)", free=True
        ),
        "remat": Key(
            str,
            REMAT,
            "none",
            "what the backward pass recomputes instead of storing: nothing; all but matrix products, convolutions, "
            "scans and attention; or whole blocks (docs/compile.md)",
            free=True,
        ),
    }
)
IMG_SIZE = Key(
    int | tuple[int, int], f"{MIN_SIZE}..{MAX_SIZE}", None, "side, or height and width, of the images in pixels"
)
# Preprocessing of the images; not arguments of the module. The defaults are those of the variant.
PREPARATION: Mapping[str, Key] = MappingProxyType(
    {
        "img_size": IMG_SIZE,
        "mean": Key(tuple[float, ...], "..", None, "mean of each channel in [0, 1], subtracted from the images"),
        "std": Key(tuple[float, ...], ">0..", None, "std of each channel, by which the images are divided"),
        "crop_pct": Key(float, ">0..1", None, "fraction of the resized side that the evaluation crop keeps"),
        "crop_mode": Key(str, ("center", "squash", "border"), None, "how evaluation images are cropped"),
        "interpolation": Key(str, ("bilinear", "bicubic"), None, "interpolation for resizing evaluation images"),
    }
)
