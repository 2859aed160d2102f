"""The transform of an encoded image to a random view, uint8, as it is copied to the device.

Both pipelines make the same draws in the same order: a seed gives the same view in both, up to the filters.
Mixing, normalization and erasing happen on the device.
"""

import dataclasses
import functools
import math

import cv2
import numpy as np
from PIL import Image

from mambaout_jax.data.arguments import INTERPOLATIONS, check_size_and_channels, require
from mambaout_jax.data.decode import decode_fast, decode_image, jpeg_size, power_of_two_within, to_array
from mambaout_jax.data.errors import DataError
from mambaout_jax.data.randaugment import LINEAR_AND_CUBIC, RandAugment, affine_opencv, affine_pillow, apply

Box = tuple[int, int, int, int]


def random_crop_box(
    width: int,
    height: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> Box:
    """Draw (left, top, right, bottom): area uniform in `scale`, aspect ratio log-uniform in `ratio`.

    After ten draws that do not fit, the result is the largest centered box with an aspect ratio inside `ratio`.

    Args:
        scale: share of the image's area.
        ratio: width / height.

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
    """The transform of an encoded image to a random view, contiguous uint8 (h, w, c).

    A box is cropped and resized, then flipped, then augmented. With `crop="resize"` the box is the whole image, with
    "random_resized" a random one.

    `pipeline="exact"` resizes with Pillow, with antialiasing: pixel for pixel the views of timm. With "fast" the JPEG
    decoder reduces a box that is at least two, four or eight times too large by that factor, and OpenCV interpolates
    the rest, without antialiasing below a factor of two.

    Args:
        size: (height, width) in pixels.
        channels: 1 (gray) or 3 (RGB).
        scale: share of the area that the random box covers.
        ratio: width / height of the random box.
        flip: probability of a horizontal flip.
        interpolation: "bicubic", "bilinear", or "random" for one of the two, drawn for each image.
        auto_augment: RandAugment in the notation of timm, such as "rand-m9-mstd0.5-inc1"; None for none.

    Raises:
        DataError: a value is outside its range.
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
        """Return a random view, uint8 (h, w, c); equal generators give equal views.

        Raises:
            DataError: the image does not decode.
        """
        fast = self.pipeline == "fast"
        view = self._crop_fast(image, rng) if fast else self._crop_exact(image, rng)
        if self.flip and rng.random() < self.flip:
            view = cv2.flip(view, 1).reshape(view.shape)
        if self._rand_augment is not None:
            for operation in self._rand_augment.draw(rng):
                view = apply(view, operation, affine_opencv if fast else affine_pillow)
        return view

    def empty(self) -> np.ndarray:
        """Return a black view, uint8 (h, w, c)."""
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
        image = decode_image(image, self.channels)
        box, interpolation = self._draw(*image.size, rng)
        # Cropping first keeps the filter from reading pixels outside the box, as in torchvision.
        return to_array(image.crop(box).resize(self.size[::-1], INTERPOLATIONS[interpolation]))

    def _crop_fast(self, image: bytes | Image.Image, rng: np.random.Generator) -> np.ndarray:
        size = jpeg_size(image) if isinstance(image, bytes) else None
        if size is None:
            pixels = to_array(decode_image(image, self.channels))
            size = pixels.shape[1::-1]
            box, interpolation = self._draw(*size, rng)
        else:
            box, interpolation = self._draw(*size, rng)
            # The smallest whole image whose part in the box is as large as the view.
            min_height = math.ceil(size[1] * self.size[0] / (box[3] - box[1]))
            min_width = math.ceil(size[0] * self.size[1] / (box[2] - box[0]))
            pixels = decode_fast(image, self.channels, min_height, min_width, rows=box[3])
        # The factor by which the decoder reduced both sides, rounding up: 1, 2, 4 or 8.
        reduction = 1 << (-(-size[0] // pixels.shape[1]) - 1).bit_length()
        left, right = _scale_interval(box[0], box[2], reduction, pixels.shape[1])
        top, bottom = _scale_interval(box[1], box[3], reduction, pixels.shape[0])
        return _resize(pixels[top:bottom, left:right], self.size, interpolation)


def _scale_interval(first: int, last: int, reduction: int, scaled_extent: int) -> tuple[int, int]:
    scaled_first = min(round(first / reduction), scaled_extent - 1)
    return scaled_first, max(scaled_first + 1, min(round(last / reduction), scaled_extent))


def _resize(image: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    (height, width, channels), (to_height, to_width) = image.shape, size
    # Images that the decoder did not reduce, because they are not JPEGs or the box is elongated, are averaged down to
    # below twice the size: the interpolation reads only two or four neighbors.
    by_height, by_width = power_of_two_within(height / to_height), power_of_two_within(width / to_width)
    if max(by_height, by_width) > 1:
        image = cv2.resize(image, (width // by_width, height // by_height), interpolation=cv2.INTER_AREA)
    image = cv2.resize(image, (to_width, to_height), interpolation=LINEAR_AND_CUBIC[interpolation])
    return image.reshape(to_height, to_width, channels)
