"""The training transform of encoded images: random crop, flip and RandAugment, as uint8.

Both pipelines make the same draws in the same order, so a seed gives the same image in both, up to interpolation.
Mixup, cutmix, normalization and random erasing run on the device.
"""

import dataclasses
import functools
import math

import cv2
import numpy as np
from PIL import Image

from mambaout_jax.data.arguments import INTERPOLATIONS, check_size_and_channels, require
from mambaout_jax.data.decode import decode_fast, decode_image, find_turn, jpeg_size, power_of_two_within, to_array
from mambaout_jax.data.errors import DataError
from mambaout_jax.data.randaugment import LINEAR_AND_CUBIC, RandAugment, affine_opencv, affine_pillow

Box = tuple[int, int, int, int]


def random_crop_box(
    width: int,
    height: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> Box:
    """Draw a box (left, top, right, bottom) with area uniform in `scale` and aspect ratio log-uniform in `ratio`.

    After ten boxes that exceed the image, return the largest centered box with an aspect ratio within `ratio`.

    Args:
        scale: range of the area, relative to that of the image.
        ratio: range of width / height.

    Reference: Szegedy et al., "Going deeper with convolutions" (2015); ten attempts as in torchvision and timm.
    """
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        crop_width = round(math.sqrt(area * aspect))
        crop_height = round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(rng.integers(width - crop_width + 1))
            top = int(rng.integers(height - crop_height + 1))
            return left, top, left + crop_width, top + crop_height
    aspect = min(max(width / height, ratio[0]), ratio[1])
    crop_width = min(width, max(1, round(height * aspect)))
    crop_height = min(height, max(1, round(width / aspect)))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


@dataclasses.dataclass(frozen=True)
class TrainTransform:
    """The random training transform of an encoded image to contiguous uint8 (h, w, c).

    A box is cropped, resized, flipped and augmented: the whole image with `crop="resize"`, a random box with
    "random_resized".

    `pipeline="exact"` resizes with Pillow, with antialiasing, and gives the pixels of timm. With "fast", the JPEG
    decoder reduces boxes that are at least two, four or eight times too large by that factor, and OpenCV interpolates
    the rest, without antialiasing below a factor of two.

    Args:
        size: (height, width) in pixels.
        channels: 1 (gray) or 3 (RGB).
        scale: range of the area of the random box, relative to that of the image.
        ratio: range of width / height of the random box.
        flip: probability of a horizontal flip.
        interpolation: "bicubic", "bilinear", or "random" to draw one of the two for each image.
        exif_orientation: turn images upright by their EXIF orientation (see `decode_image`).
        auto_augment: RandAugment in timm's notation, such as "rand-m9-mstd0.5-inc1"; None for no augmentation.

    Raises:
        DataError: a value is out of range.
    """

    size: tuple[int, int]
    channels: int = 3
    crop: str = "resize"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    interpolation: str = "bicubic"
    auto_augment: str | None = None
    pipeline: str = "exact"
    exif_orientation: bool = False

    def __post_init__(self):
        check_size_and_channels(self.size, self.channels)
        require.choice("crop", self.crop, ("resize", "random_resized"))
        require.choice("interpolation", self.interpolation, (*INTERPOLATIONS, "random"))
        require.choice("pipeline", self.pipeline, ("exact", "fast"))
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise DataError(f"scale is {self.scale}; expected (low, high) with 0 < low <= high <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise DataError(f"ratio is {self.ratio}; expected (low, high) with 0 < low <= high")
        if not 0 <= self.flip <= 1:
            raise DataError(f"flip is {self.flip}; expected a probability from 0 to 1")
        _ = self._rand_augment

    def __call__(self, image: bytes | Image.Image, rng: np.random.Generator) -> np.ndarray:
        """Return the transformed image, equal for equal generators.

        Raises:
            DataError: the image cannot be decoded.
        """
        fast = self.pipeline == "fast"
        pixels = self._crop_fast(image, rng) if fast else self._crop_exact(image, rng)
        if self.flip and rng.random() < self.flip:
            pixels = cv2.flip(pixels, 1).reshape(pixels.shape)
        if self._rand_augment is not None:
            pixels = self._rand_augment(pixels, rng, affine_opencv if fast else affine_pillow)
        return pixels

    def empty(self) -> np.ndarray:
        """Return a black image, uint8 (h, w, c)."""
        return np.zeros((*self.size, self.channels), np.uint8)

    @functools.cached_property
    def _rand_augment(self) -> RandAugment | None:
        return None if self.auto_augment is None else RandAugment.parse(self.auto_augment)

    def _draw(self, width: int, height: int, rng: np.random.Generator) -> tuple[Box, str]:
        box = (0, 0, width, height)
        if self.crop == "random_resized":
            box = random_crop_box(width, height, self.scale, self.ratio, rng)
        if self.interpolation == "random":
            return box, "bilinear" if rng.random() < 0.5 else "bicubic"
        return box, self.interpolation

    def _crop_exact(self, image: bytes | Image.Image, rng: np.random.Generator) -> np.ndarray:
        image = decode_image(image, self.channels, exif_orientation=self.exif_orientation)
        box, interpolation = self._draw(*image.size, rng)
        # Cropped before resizing, as in torchvision, so that the filter does not read pixels outside of the box.
        return to_array(image.crop(box).resize(self.size[::-1], INTERPOLATIONS[interpolation]))

    def _crop_fast(self, image: bytes | Image.Image, rng: np.random.Generator) -> np.ndarray:
        size, turn = jpeg_size(image) if isinstance(image, bytes) else None, None
        if size is None:
            pixels = to_array(decode_image(image, self.channels, exif_orientation=self.exif_orientation))
            size = pixels.shape[1::-1]
            box, interpolation = self._draw(*size, rng)
        else:
            turn = find_turn(image) if self.exif_orientation else None
            (width, height), target = (size, self.size) if turn not in SIDEWAYS else (size[::-1], self.size[::-1])
            box, interpolation = self._draw(width, height, rng)
            box = _box_in_file(box, turn, width, height)
            # The smallest size of the whole image at which the box is not smaller than `target`.
            min_height = math.ceil(size[1] * target[0] / (box[3] - box[1]))
            min_width = math.ceil(size[0] * target[1] / (box[2] - box[0]))
            pixels = decode_fast(image, self.channels, min_height, min_width, rows=box[3])
        # The factor by which the decoder reduced both sides: 1, 2, 4 or 8. It rounds sizes up.
        reduction = 1 << (-(-size[0] // pixels.shape[1]) - 1).bit_length()
        left, right = _scale_interval(box[0], box[2], reduction, pixels.shape[1])
        top, bottom = _scale_interval(box[1], box[3], reduction, pixels.shape[0])
        pixels = pixels[top:bottom, left:right]
        if turn is not None:
            pixels = to_array(Image.fromarray(pixels.squeeze(-1) if self.channels == 1 else pixels).transpose(turn))
        return _resize(pixels, self.size, interpolation)


# The turns that exchange width and height, and those that begin with a reflection of the upright box.
SIDEWAYS = (
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)
MIRRORED_X = (
    Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.ROTATE_180,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
)
MIRRORED_Y = (
    Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.ROTATE_180,
    Image.Transpose.ROTATE_90,
    Image.Transpose.TRANSVERSE,
)


def _box_in_file(box: Box, turn: Image.Transpose | None, width: int, height: int) -> Box:
    """Return the box before the turn of a box in the upright image, whose size is width x height."""
    left, top, right, bottom = box
    if turn in MIRRORED_X:
        left, right = width - right, width - left
    if turn in MIRRORED_Y:
        top, bottom = height - bottom, height - top
    return (top, left, bottom, right) if turn in SIDEWAYS else (left, top, right, bottom)


def _scale_interval(first: int, last: int, reduction: int, scaled_extent: int) -> tuple[int, int]:
    scaled_first = min(round(first / reduction), scaled_extent - 1)
    return scaled_first, max(scaled_first + 1, min(round(last / reduction), scaled_extent))


def _resize(image: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    (height, width, channels), (to_height, to_width) = image.shape, size
    # Images that the decoder did not reduce, because they are not JPEGs or the box is elongated, are first averaged to
    # less than twice the target size, because the interpolation reads only two or four neighbors.
    by_height, by_width = power_of_two_within(height / to_height), power_of_two_within(width / to_width)
    if max(by_height, by_width) > 1:
        image = cv2.resize(image, (width // by_width, height // by_height), interpolation=cv2.INTER_AREA)
    image = cv2.resize(image, (to_width, to_height), interpolation=LINEAR_AND_CUBIC[interpolation])
    return image.reshape(to_height, to_width, channels)
