"""Images of any size on the host: decoding, resizing, and their place in a canvas."""

import cv2
import numpy as np

from mambaout_jax.data.decode import decode_fast, decode_image, find_turn, to_array

Size = tuple[int, int]

# Sides of canvases are multiples of this, the stride of the coarsest map of a backbone, in pixels.
CANVAS_MULTIPLE = 32


def decode_pixels(encoded: bytes, channels: int, *, exif_orientation: bool) -> np.ndarray:
    """Decode an image to uint8 (h, w, c).

    Args:
        channels: 1 (gray) or 3 (RGB).
        exif_orientation: turn the image upright by its EXIF orientation.

    Raises:
        DataError: it cannot be decoded.
    """
    if exif_orientation and find_turn(encoded) is not None:
        return to_array(decode_image(encoded, channels, exif_orientation=True))
    return decode_fast(encoded, channels)


def fit_size(size: Size, box: Size) -> Size:
    """Return the largest (height, width) of an image's aspect ratio within a box.

    Args:
        box: the lengths of the shorter and the longer side.
    """
    height, width = size
    factor = min(max(box) / max(size), min(box) / min(size))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def round_up(size: Size) -> Size:
    """Return the smallest (height, width) of a canvas that contains a size."""
    height, width = (-(-side // CANVAS_MULTIPLE) * CANVAS_MULTIPLE for side in size)
    return height, width


def resize_image(image: np.ndarray, size: Size) -> np.ndarray:
    """Interpolate an image bilinearly, without antialiasing."""
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR).reshape(*size, image.shape[2])


def place(pixels: np.ndarray, size: Size, fill: int) -> np.ndarray:
    """Return a contiguous array of a size with `pixels` at the top left."""
    if pixels.shape[:2] == size:
        return np.ascontiguousarray(pixels)
    placed = np.full((*size, *pixels.shape[2:]), fill, pixels.dtype)
    placed[: pixels.shape[0], : pixels.shape[1]] = pixels
    return placed
