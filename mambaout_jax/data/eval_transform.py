"""The evaluation transform of encoded images.

Pillow resizes with antialiasing, as in the pipelines behind published accuracies. Pixels stay uint8: normalization runs
on the device.
"""

import dataclasses
import math

import numpy as np
from PIL import Image

from mambaout_jax.data.arguments import FILL, INTERPOLATIONS, check_size_and_channels, require
from mambaout_jax.data.decode import decode_image, to_array
from mambaout_jax.data.errors import DataError

CROP_MODES = ("center", "squash", "border")
MAX_ELONGATION = 200  # ratio of the sides


@dataclasses.dataclass(frozen=True)
class EvalTransform:
    """The evaluation transform of an image to uint8 (h, w, c), pixel for pixel as in timm.

    The image is resized to floor(size / crop_pct), and its center is cropped. `crop_mode="center"` resizes the shorter
    side and keeps the aspect ratio, "squash" resizes both sides, and "border" resizes the longer side and pads with the
    mean color of ImageNet.

    Args:
        size: (height, width) in pixels.
        channels: 1 (gray) or 3 (RGB).
        crop_pct: ratio of the crop to the resized side, above 0 and at most 1.
        exif_orientation: turn images upright by their EXIF orientation (see `decode_image`).

    Raises:
        DataError: a value is out of range.
    """

    size: tuple[int, int]
    channels: int = 3
    crop_pct: float = 1.0
    crop_mode: str = "center"
    interpolation: str = "bicubic"
    exif_orientation: bool = False

    def __post_init__(self):
        check_size_and_channels(self.size, self.channels)
        require.choice("crop_mode", self.crop_mode, CROP_MODES)
        require.choice("interpolation", self.interpolation, tuple(INTERPOLATIONS))
        if not 0 < self.crop_pct <= 1:
            raise DataError(f"crop_pct is {self.crop_pct}; expected a number above 0 and at most 1")

    def __call__(self, image: bytes | Image.Image) -> np.ndarray:
        """Decode, resize and crop an image.

        Raises:
            DataError: the image cannot be decoded.
        """
        image = decode_image(image, self.channels, exif_orientation=self.exif_orientation)
        if self.crop_mode == "center":
            image = _limit_elongation(image)
        width, height = self._resized_size(*image.size)
        image = image.resize((width, height), INTERPOLATIONS[self.interpolation])
        return to_array(self._crop_center(image))

    def empty(self) -> np.ndarray:
        """Return a black image, uint8 (h, w, c)."""
        return np.zeros((*self.size, self.channels), np.uint8)

    def _resized_size(self, width: int, height: int) -> tuple[int, int]:
        target_height, target_width = (math.floor(side / self.crop_pct) for side in self.size)
        if self.crop_mode == "squash":
            return target_width, target_height
        if self.crop_mode == "border":
            factor = max(height / target_height, width / target_width)
            return max(1, round(width / factor)), max(1, round(height / factor))
        if target_height != target_width:
            factor = min(height / target_height, width / target_width)
            return round(width / factor), round(height / factor)
        if width <= height:
            return target_width, int(target_width * height / width)
        return int(target_height * width / height), target_height

    def _crop_center(self, image: Image.Image) -> Image.Image:
        height, width = self.size
        left, top = _center_offset(image.width, width), _center_offset(image.height, height)
        if image.width >= width and image.height >= height:
            return image.crop((left, top, left + width, top + height))
        canvas = Image.new("RGB", (width, height), FILL[3]).convert(image.mode)
        canvas.paste(image, (-left, -top))
        return canvas


def _limit_elongation(image: Image.Image) -> Image.Image:
    """Return an image without the ends that the center crop removes; resized with them it could fill the memory."""
    longest = MAX_ELONGATION * min(image.size)
    if max(image.size) <= longest:
        return image
    width, height = min(image.width, longest), min(image.height, longest)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _center_offset(extent: int, crop: int) -> int:
    # Odd margins as in torchvision: rounded to even for cropping, one more at the bottom or right for padding.
    return round((extent - crop) / 2) if extent >= crop else -((crop - extent) // 2)
