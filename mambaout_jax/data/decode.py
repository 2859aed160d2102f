"""Decoding images to 8 bits a value: with Pillow, which reads everything, or with simplejpeg, which is fast."""

import io

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from mambaout_jax.data.errors import DataError

MODES = {1: "L", 3: "RGB"}
SIXTEEN_BIT_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")
MAX_REDUCTION = 8  # the size of a DCT block, of which one value is left
# Start-of-frame markers; rows come in order in sequential frames of Huffman codes.
SEQUENTIAL_FRAMES, OTHER_FRAMES = (0xC0, 0xC1), (0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
START_OF_SCAN, END_OF_IMAGE = 0xDA, b"\xff\xd9"
# Color smoothing reads at most two rows of eight-fold reduced pixels below the last requested row.
ROWS_BELOW = 16


def decode_image(image: bytes | Image.Image, channels: int = 3, *, exif_orientation: bool = False) -> Image.Image:
    """Decode any image that Pillow reads to 8 bits, gray or RGB.

    Alpha is dropped and CMYK converted as Pillow's `convert` does, and 16-bit values are scaled to 8 bits, as in the
    pipelines that published accuracies were measured with. They also ignore EXIF orientation.

    Args:
        channels: 1 (gray) or 3 (RGB).
        exif_orientation: rotate the image as its EXIF orientation says, for photographs of users.

    Raises:
        DataError: the bytes are not an image, or it is damaged or has floating-point pixels.
    """
    try:
        if isinstance(image, bytes):
            image = Image.open(io.BytesIO(image))
        image.load()
        if exif_orientation:
            image = ImageOps.exif_transpose(image)
        if image.mode in SIXTEEN_BIT_MODES:
            image = Image.fromarray((np.asarray(image).astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8))
        elif image.mode == "F":
            raise DataError("floating-point pixels have no standard range; save the image with 8 or 16 bits")
        elif image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # Pillow warns when it drops the alpha of a palette in one step
        return image if image.mode == MODES[channels] else image.convert(MODES[channels])
    except DataError:
        raise
    except Exception as error:  # Pillow's plugins raise a dozen types on damaged bytes
        raise DataError(f"not an image that Pillow decodes ({type(error).__name__}: {error})") from error


def jpeg_size(image: bytes) -> tuple[int, int] | None:
    """Read (width, height) from the header of a gray or YCbCr JPEG; None for all others, which `decode_image` reads."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(image)
    except ValueError:
        return None
    # Pillow has its own conversion of CMYK, and its own error for decompression bombs.
    return (width, height) if colours in ("YCbCr", "Gray") and width * height <= Image.MAX_IMAGE_PIXELS else None


def decode_fast(
    image: bytes, channels: int = 3, min_height: int = 0, min_width: int = 0, rows: int | None = None
) -> np.ndarray:
    """Decode to uint8 (h, w, c), a JPEG only at the resolution and only down to the row that are needed.

    A JPEG whose sides are at least 2, 4 or 8 times the minimum is decoded at 1/2, 1/4 or 1/8 of them, rounded up, from
    the low frequencies that it stores. Otherwise, and for everything that simplejpeg does not read, the pixels are
    those of `decode_image`.

    Args:
        channels: 1 (gray) or 3 (RGB).
        min_height: the minimum height in pixels; 0 for the full resolution.
        min_width: likewise.
        rows: how many rows of the full image are needed; the result may have more. None for all.

    Raises:
        DataError: as `decode_image`.
    """
    size = jpeg_size(image)
    if size is None:
        return to_array(decode_image(image, channels))
    width, height = size
    reduction = 1
    if min_height > 0 and min_width > 0:
        reduction = min(power_of_two_within(min(height / min_height, width / min_width)), MAX_REDUCTION)
    try:
        # libjpeg also scales by 3/8 and the like, more slowly than by powers of two: these arguments exclude that.
        shortened = None if rows is None else _shorten(image, height, rows + ROWS_BELOW)
        height = height if shortened is None else rows + ROWS_BELOW
        sizes = {"min_height": -(-height // reduction), "min_width": -(-width // reduction), "min_factor": reduction}
        # Not strict about a shortened one, which has data left over.
        pixels = simplejpeg.decode_jpeg(shortened or image, "RGB", strict=shortened is None, **sizes)
    except ValueError:  # damaged: Pillow reads some of these, and has a message for the others
        return to_array(decode_image(image, channels))
    return pixels if channels == 3 else to_array(Image.fromarray(pixels).convert(MODES[1]))


def _shorten(image: bytes, height: int, rows: int) -> bytes | None:
    """Write fewer rows into the frame header of a JPEG: the decoder stops after them.

    Returns None where that is impossible or saves nothing: progressive files, truncated ones, and too many rows.
    """
    if rows >= height or not image.endswith(END_OF_IMAGE):
        return None
    at = 2
    while image[at] == 0xFF and image[at + 1] not in (*OTHER_FRAMES, START_OF_SCAN):
        if image[at + 1] in SEQUENTIAL_FRAMES:
            return image[: at + 5] + rows.to_bytes(2, "big") + image[at + 7 :]
        at += 2 + int.from_bytes(image[at + 2 : at + 4], "big")
    return None


def power_of_two_within(factor: float) -> int:
    """Return the largest power of two that is at most `factor`, and 1 for factors below 1."""
    return 1 << max(0, int(factor).bit_length() - 1)


def to_array(image: Image.Image) -> np.ndarray:
    """Return a gray or RGB image as uint8 (h, w, c)."""
    return np.asarray(image).reshape(image.height, image.width, -1)
