"""Pictures of predictions: colors of classes, and encoding."""

import base64
import colorsys
import io

import numpy as np
from PIL import Image

from mambaout_jax.data import DataError

GOLDEN_RATIO = 0.618033988749895
# JPEG_MAX_DIMENSION of libjpeg.
MAX_JPEG_SIDE = 65500


def distinct_color(index: int) -> tuple[int, int, int]:
    """Return a color for a class, which differs from those of the classes next to it."""
    hue = (index * GOLDEN_RATIO) % 1
    value = (1.0, 0.75, 0.9)[index % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.85, 0.95, 0.6)[index // 3 % 3], value)
    return round(255 * red), round(255 * green), round(255 * blue)


def encode_picture(pixels: np.ndarray) -> bytes:
    """Encode pixels as a JPEG of good quality.

    Raises:
        DataError: a JPEG cannot have the size.
    """
    if max(pixels.shape[:2]) > MAX_JPEG_SIDE:
        height, width = pixels.shape[:2]
        raise DataError(
            f"its overlay is {height}x{width} (height x width); a JPEG has at most {MAX_JPEG_SIDE} per side"
        )
    return encode_image(Image.fromarray(pixels), "JPEG", quality=90)


def data_uri(encoded: bytes, kind: str = "jpeg") -> str:
    """Return an encoded image as an address that contains it, for pages."""
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}"


def encode_image(image: Image.Image, kind: str, **options) -> bytes:
    """Encode an image in a format of Pillow, with its options."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
