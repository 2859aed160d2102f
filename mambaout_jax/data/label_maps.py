"""Label maps: images whose pixels are classes."""

import io

import numpy as np
from PIL import Image

from mambaout_jax.data.errors import DataError
from mambaout_jax.errors import reason
from mambaout_jax.machine import MachineError, describe_fault

# The label of pixels that have no class.
IGNORED = 255


def decode_label_map(encoded: bytes) -> np.ndarray:
    """Decode a label map to uint8 (h, w): an image whose pixels, gray or indices of a palette, are labels.

    Raises:
        DataError: it is another image.
        MachineError: there is not enough memory.
    """
    try:
        image = Image.open(io.BytesIO(encoded))
        image.load()
    except Exception as error:  # Pillow's plugins raise many types for damaged files
        if fault := describe_fault(error):
            raise MachineError(fault) from error
        raise DataError(f"its label map cannot be decoded ({type(error).__name__}: {reason(error)})") from error
    if image.mode not in ("L", "P", "1"):
        raise DataError(
            f"its label map has pixels of mode {image.mode}; one label of 8 bits per pixel, gray or an index of a "
            "palette, is expected"
        )
    return np.asarray(image).astype(np.uint8)


def check_label_map(labels: np.ndarray, size: tuple[int, int], num_classes: int) -> None:
    """Check that a label map has the size of its image, (height, width), and no label that is not a class.

    Raises:
        DataError: it does not.
    """
    if labels.shape != size:
        raise DataError(
            f"its image is {size[1]}x{size[0]} and its label map {labels.shape[1]}x{labels.shape[0]}; equal sizes are "
            "expected"
        )
    if (largest := int(labels[labels != IGNORED].max(initial=0))) >= num_classes:
        raise DataError(
            f"its label map has the label {largest}; 0 to {num_classes - 1}, or {IGNORED} for ignored pixels, are "
            "expected"
        )
