"""Arguments shared by both image transforms, and their checks."""

from PIL import Image

from mambaout_jax.checks import Require
from mambaout_jax.data.errors import DataError

require = Require(DataError)

INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
FILL = {1: (117,), 3: (124, 116, 104)}  # by number of channels: the mean color of ImageNet, and its luma


def check_size_and_channels(size: tuple[int, int], channels: int) -> None:
    """Check that `size` is (height, width) in pixels and `channels` is 1 (gray) or 3 (RGB).

    Raises:
        DataError: one of them is invalid.
    """
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise DataError(f"size is {size}; expected (height, width) in pixels, both positive")
    if channels not in (1, 3):
        raise DataError(f"channels (in_chans of the model) is {channels}; expected 1 (gray) or 3 (RGB)")
