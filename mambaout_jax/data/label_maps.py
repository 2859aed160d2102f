"""Label maps: images whose pixels are classes."""

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from mambaout_jax.data.errors import DataError
from mambaout_jax.errors import reason
from mambaout_jax.machine import MachineError, describe_fault
from mambaout_jax.words import count

# The label of pixels that have no class.
IGNORED = 255
PNG_BIT_DEPTH = 24  # the position of the byte in a file: behind the signature, a length, "IHDR", width and height


def decode_label_map(encoded: bytes) -> np.ndarray:
    """Decode a label map to uint8 (h, w): an image whose pixels, gray or indices of a palette, are labels.

    Raises:
        DataError: it is another image, or a JPEG.
        MachineError: there is not enough memory.
    """
    try:
        image = Image.open(io.BytesIO(encoded))
        image.load()
    except Exception as error:  # Pillow's plugins raise many types for damaged files
        if fault := describe_fault(error):
            raise MachineError(fault) from error
        # The text of this type has the address of an object.
        unknown = isinstance(error, UnidentifiedImageError)
        fault = "its format is unknown" if unknown else f"{type(error).__name__}: {reason(error)}"
        raise DataError(f"the label map cannot be decoded ({fault})") from error
    if image.format in ("JPEG", "MPO"):
        raise DataError("the label map is a JPEG, whose compression changes labels; expected PNG")
    if image.mode not in ("L", "P", "1"):
        raise DataError(
            f"the label map has pixels of mode {image.mode}; expected one label of 8 bits per pixel, gray or an index "
            "of a palette"
        )
    labels = np.asarray(image).astype(np.uint8)
    if image.format == "PNG" and image.mode == "L":  # Pillow scales gray pixels of fewer bits to 0 to 255
        labels //= 255 // (2 ** encoded[PNG_BIT_DEPTH] - 1)
    return labels


def check_label_map(
    labels: np.ndarray,
    size: tuple[int, int],
    num_classes: int,
    *,
    source: str = "the dataset",
    zero_is_ignored: bool = False,
) -> None:
    """Check that a label map has the size of its image, (height, width), and no label that is not a class.

    Args:
        source: the source of the classes, for the message.
        zero_is_ignored: 0 stands for no class and k for class k - 1, as in ADE20K.

    Raises:
        DataError: it does not.
    """
    if labels.shape != size:
        raise DataError(
            f"the label map is {labels.shape[0]}x{labels.shape[1]} (height x width) and its image {size[0]}x{size[1]}; "
            "expected equal sizes"
        )
    last = num_classes - 1 + zero_is_ignored
    if (largest := int(labels[labels != IGNORED].max(initial=0))) > last:
        raise DataError(
            f"the label map has the label {largest}; expected 0 to {last} for the {count(num_classes, 'class')} of "
            f"{source}, or {IGNORED} for ignored pixels"
        )
