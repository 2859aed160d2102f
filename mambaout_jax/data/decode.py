"""Decoding of images to 8 bits per channel, with Pillow (every format) or simplejpeg (fast)."""

import contextlib
import importlib
import io

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from mambaout_jax.data.errors import DataError
from mambaout_jax.errors import reason
from mambaout_jax.machine import MachineError, describe_fault

with contextlib.suppress(ImportError):  # optional; nothing else is needed to read HEIC images
    pillow_heif = importlib.import_module("pillow_heif")
    pillow_heif.register_heif_opener()

MODES = {1: "L", 3: "RGB"}
SIXTEEN_BIT_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")
ORIENTATION = 0x0112  # the EXIF tag; its values by the turn that makes the image upright
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Brands of HEIF files (ISO/IEC 23008-12), the format of photographs of phones; AVIF has its own, which Pillow decodes.
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
MAX_REDUCTION = 8  # the size of a DCT block, which then yields one pixel
# Start-of-frame markers; sequential Huffman-coded frames store their rows in order.
SEQUENTIAL_FRAMES, OTHER_FRAMES = (0xC0, 0xC1), (0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
START_OF_SCAN, END_OF_IMAGE = 0xDA, b"\xff\xd9"
WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD9))  # markers without a segment: TEM, restarts and the start of an image
# Chroma upsampling reads at most two rows below the last requested row, at a reduction of up to 8.
ROWS_BELOW = 16


def decode_image(image: bytes | Image.Image, channels: int = 3, *, exif_orientation: bool = False) -> Image.Image:
    """Decode any image that Pillow supports to 8-bit gray or RGB.

    Alpha is dropped, CMYK is converted by Pillow's `convert`, and 16-bit values are scaled to 8 bits, as in the
    pipelines behind published accuracies. Those ignore EXIF orientation, too.

    Args:
        channels: 1 (gray) or 3 (RGB).
        exif_orientation: turn the image upright by its EXIF orientation; damaged EXIF data is ignored.

    Raises:
        DataError: the bytes are not an image, or the image is damaged or has floating-point pixels.
        MachineError: there is not enough memory.
    """
    try:
        if isinstance(image, bytes):
            image = Image.open(io.BytesIO(image))
        image.load()
        if exif_orientation and (turn := find_turn(image)) is not None:
            image = image.transpose(turn)
        if image.mode in SIXTEEN_BIT_MODES:
            image = Image.fromarray((np.asarray(image).astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8))
        elif image.mode == "F":
            raise DataError("floating-point pixels have no standard range; save the image with 8 or 16 bits")
        elif image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # Pillow warns if the alpha of a palette is dropped directly
        return image if image.mode == MODES[channels] else image.convert(MODES[channels])
    except DataError:
        raise
    except Exception as error:  # Pillow's plugins raise many types for damaged files
        if fault := describe_fault(error):
            raise MachineError(fault) from error
        if isinstance(error, UnidentifiedImageError):  # its text has the address of an object
            raise DataError(_describe_unknown(image)) from error
        raise DataError(f"Pillow cannot decode the image ({type(error).__name__}: {reason(error)})") from error


def _describe_unknown(image: bytes) -> str:
    if image[4:8] == b"ftyp" and image[8:12] in HEIF_BRANDS:
        return "HEIC images require pillow-heif; run: pip install pillow-heif"
    return "Pillow cannot decode the image (its format is unknown)"


def find_turn(image: bytes | Image.Image) -> Image.Transpose | None:
    """Return the turn that makes an image upright, from its EXIF orientation; None for none or damaged EXIF data."""
    try:
        if isinstance(image, bytes):
            image = Image.open(io.BytesIO(image))
        return TURNS.get(image.getexif().get(ORIENTATION))
    except Exception as error:  # Pillow raises many types for damaged EXIF data
        if fault := describe_fault(error):
            raise MachineError(fault) from error
        return None


def jpeg_size(image: bytes) -> tuple[int, int] | None:
    """Read (width, height) from the header of a gray or YCbCr JPEG; return None for all other images."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(image)
    except ValueError:
        return None
    # CMYK and decompression bombs are left to Pillow, which has its own conversion and error.
    return (width, height) if colorspace in ("YCbCr", "Gray") and width * height <= Image.MAX_IMAGE_PIXELS else None


def decode_fast(
    image: bytes, channels: int = 3, min_height: int = 0, min_width: int = 0, rows: int | None = None
) -> np.ndarray:
    """Decode to uint8 (h, w, c); of a JPEG, only the required resolution and rows.

    A JPEG with sides of at least 2, 4 or 8 times the minimum is decoded at 1/2, 1/4 or 1/8 of its size, rounded
    up, from its low frequencies. Otherwise, and for formats that simplejpeg does not support, the pixels are those of
    `decode_image`.

    Args:
        channels: 1 (gray) or 3 (RGB).
        min_height: minimum height in pixels; 0 for full resolution.
        min_width: minimum width in pixels; 0 for full resolution.
        rows: number of rows of the full image that are required; the result may have more. None for all.

    Raises:
        DataError: as in `decode_image`.
    """
    size = jpeg_size(image)
    if size is None:
        return to_array(decode_image(image, channels))
    width, height = size
    reduction = 1
    if min_height > 0 and min_width > 0:
        reduction = min(power_of_two_within(min(height / min_height, width / min_width)), MAX_REDUCTION)
    try:
        # These arguments exclude scales such as 3/8, at which libjpeg is slower than at powers of two.
        shortened = None if rows is None else _shorten(image, height, rows + ROWS_BELOW)
        height = height if shortened is None else rows + ROWS_BELOW
        sizes = {"min_height": -(-height // reduction), "min_width": -(-width // reduction), "min_factor": reduction}
        # Not strict for shortened files, because they have trailing data.
        pixels = simplejpeg.decode_jpeg(shortened or image, "RGB", strict=shortened is None, **sizes)
    except ValueError:  # damaged files: Pillow decodes some of them and explains the others
        return to_array(decode_image(image, channels))
    return pixels if channels == 3 else to_array(Image.fromarray(pixels).convert(MODES[1]))


def _shorten(image: bytes, height: int, rows: int) -> bytes | None:
    """Return a JPEG with fewer rows in its frame header, so that the decoder stops after them.

    Return None if that is impossible or saves nothing: for progressive, damaged or truncated files, and for too many
    rows. A marker is any number of fill bytes 0xFF and its code; a segment is a marker, its length and its content.
    Reference: ITU-T T.81, sections B.1.1.2 to B.1.1.4.
    """
    if rows >= height or not image.endswith(END_OF_IMAGE):
        return None
    offset = 2
    while image[offset : offset + 1] == b"\xff":
        while image[offset : offset + 1] == b"\xff":
            offset += 1
        segment = image[offset : offset + 6]  # code, length, precision and height
        if len(segment) < 6 or segment[0] in (*OTHER_FRAMES, START_OF_SCAN):
            return None
        if segment[0] in SEQUENTIAL_FRAMES:
            return image[: offset + 4] + rows.to_bytes(2, "big") + image[offset + 6 :]
        offset += 1 if segment[0] in WITHOUT_LENGTH else 1 + int.from_bytes(segment[1:3], "big")
    return None


def power_of_two_within(factor: float) -> int:
    """Return the largest power of two up to `factor`, and 1 for factors below 1."""
    return 1 << max(0, int(factor).bit_length() - 1)


def to_array(image: Image.Image) -> np.ndarray:
    """Return a gray or RGB image as uint8 (h, w, c)."""
    return np.asarray(image).reshape(image.height, image.width, -1)
