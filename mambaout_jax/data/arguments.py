"""What both transforms take, and the sentences for what they do not."""

from PIL import Image

from mambaout_jax.data.errors import DataError

INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
FILL = {1: (117,), 3: (124, 116, 104)}  # by channels: ImageNet's mean colour, and its luma


def check_size_and_channels(size: tuple[int, int], channels: int) -> None:
    """Refuse a size that is not (height, width) in whole pixels, and channels that are neither grey nor RGB.

    Raises:
        DataError: one of the two does not fit.
    """
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise DataError(f"size is {size}; expected (height, width) in pixels, both positive")
    if channels not in (1, 3):
        raise DataError(f"channels is {channels}; expected 1 (grey) or 3 (RGB)")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is not one of the choices.

    Raises:
        DataError: the sentence lists the choices.
    """
    if value not in choices:
        raise DataError(f"{name} is {value!r}; expected one of {', '.join(choices)}")
