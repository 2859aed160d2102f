"""From an encoded image to the uint8 array that crosses to the device.

Pillow resizes with antialiasing, the reference that published accuracies were measured with. Values stay uint8:
normalisation, mixing and erasing happen on the device.
"""

import dataclasses
import io
import math

import numpy as np
from PIL import Image, ImageOps

from mambaout_jax.data.errors import DataError

INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
MODES = {1: "L", 3: "RGB"}
SIXTEEN_BIT_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")
MAX_ELONGATION = 200


def decode_image(image: bytes | Image.Image, channels: int = 3, *, exif_orientation: bool = False) -> Image.Image:
    """Decode any image that Pillow reads to 8 bits, grey or RGB.

    Alpha is dropped and CMYK converted as Pillow's `convert` does, 16-bit values are scaled to 8 bits: what
    published accuracies rest on. EXIF orientation is ignored unless asked for, as in every ImageNet pipeline;
    ask for it where people hand in photographs of their own.

    Args:
        channels: 1 (grey) or 3 (RGB).

    Raises:
        DataError: the bytes hold no image, or one that is damaged or has floating-point pixels.
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
            raise DataError("floating-point pixels have no agreed range: save the image with 8 or 16 bits")
        elif image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # Pillow warns when it drops a palette's alpha in one go
        return image if image.mode == MODES[channels] else image.convert(MODES[channels])
    except DataError:
        raise
    except Exception as error:  # Pillow's plugins raise a dozen types on damaged bytes
        raise DataError(f"not an image that Pillow decodes ({type(error).__name__}: {error})") from error


def random_crop_box(
    width: int,
    height: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[int, int, int, int]:
    """Draw (left, top, right, bottom): area uniform in `scale`, aspect ratio log-uniform in `ratio`.

    After ten draws that do not fit, the largest centred box with an aspect ratio inside `ratio`.

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
    """Turn an encoded image into one random view of it, uint8 (h, w, c).

    `crop="resize"` resizes the whole image straight to `size`; "random_resized" resizes a random box of it.

    Args:
        size: (height, width) in pixels.
        channels: 1 (grey) or 3 (RGB).
        scale: share of the area that the random box covers.
        ratio: width / height of the random box.
        flip: probability of a horizontal flip.
        interpolation: "bicubic", "bilinear", or "random", which draws one of the two for each image.

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

    def __post_init__(self):
        _check_size_and_channels(self.size, self.channels)
        _check_choice("crop", self.crop, ("resize", "random_resized"))
        _check_choice("interpolation", self.interpolation, (*INTERPOLATIONS, "random"))
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise DataError(f"scale is {self.scale}; expected (low, high) with 0 < low <= high <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise DataError(f"ratio is {self.ratio}; expected (low, high) with 0 < low <= high")
        if not 0 <= self.flip <= 1:
            raise DataError(f"flip is {self.flip}; expected a probability from 0 to 1")

    def __call__(self, image: bytes | Image.Image, rng: np.random.Generator) -> np.ndarray:
        """Draw one view; equal generators give equal views."""
        image = decode_image(image, self.channels)
        if self.crop == "random_resized":
            # Cropping first keeps the filter from reading pixels outside the box, as torchvision does.
            image = image.crop(random_crop_box(*image.size, self.scale, self.ratio, rng))
        interpolation = self.interpolation
        if interpolation == "random":
            interpolation = "bilinear" if rng.random() < 0.5 else "bicubic"
        image = image.resize((self.size[1], self.size[0]), INTERPOLATIONS[interpolation])
        if self.flip and rng.random() < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return _to_array(image, self.channels)


@dataclasses.dataclass(frozen=True)
class EvalTransform:
    """Turn an image into the one view that it is evaluated on, uint8 (h, w, c), pixel for pixel as timm does.

    The resized image would be floor(size / crop_pct); from it the centre is cut out. "center" scales the shorter
    side to that and keeps the aspect ratio, "squash" scales both sides, "border" scales the longer side and
    fills what is missing.

    Args:
        size: (height, width) in pixels.
        channels: 1 (grey) or 3 (RGB).
        crop_pct: share of the resized side that the crop keeps, above 0 and at most 1.
        fill: RGB of the borders; the default is ImageNet's mean.
        exif_orientation: turn photographs upright (see `decode_image`).

    Raises:
        DataError: a value is outside its range.
    """

    size: tuple[int, int]
    channels: int = 3
    crop_pct: float = 1.0
    crop_mode: str = "center"
    interpolation: str = "bicubic"
    fill: tuple[int, int, int] = (124, 116, 104)
    exif_orientation: bool = False

    def __post_init__(self):
        _check_size_and_channels(self.size, self.channels)
        _check_choice("crop_mode", self.crop_mode, ("center", "squash", "border"))
        _check_choice("interpolation", self.interpolation, tuple(INTERPOLATIONS))
        if not 0 < self.crop_pct <= 1:
            raise DataError(f"crop_pct is {self.crop_pct}; expected a share above 0 and at most 1")

    def __call__(self, image: bytes | Image.Image) -> np.ndarray:
        """Resize and cut out the centre.

        Raises:
            DataError: the image does not decode, or is too elongated to be resized by its shorter side.
        """
        image = decode_image(image, self.channels, exif_orientation=self.exif_orientation)
        width, height = self._resized_size(*image.size)
        image = image.resize((width, height), INTERPOLATIONS[self.interpolation])
        return _to_array(self._cut_centre(image), self.channels)

    def _resized_size(self, width: int, height: int) -> tuple[int, int]:
        target_height, target_width = (math.floor(side / self.crop_pct) for side in self.size)
        if self.crop_mode == "squash":
            return target_width, target_height
        if self.crop_mode == "border":
            factor = max(height / target_height, width / target_width)
            return max(1, round(width / factor)), max(1, round(height / factor))
        if max(width, height) > MAX_ELONGATION * min(width, height):
            raise DataError(
                f"a {width}x{height} image has sides of more than {MAX_ELONGATION} to 1; crop it, "
                "or use crop_mode='squash'"
            )
        if target_height != target_width:
            factor = min(height / target_height, width / target_width)
            return round(width / factor), round(height / factor)
        if width <= height:
            return target_width, int(target_width * height / width)
        return int(target_height * width / height), target_height

    def _cut_centre(self, image: Image.Image) -> Image.Image:
        height, width = self.size
        left, top = _centre_offset(image.width, width), _centre_offset(image.height, height)
        if image.width >= width and image.height >= height:
            return image.crop((left, top, left + width, top + height))
        canvas = Image.new("RGB", (width, height), self.fill).convert(image.mode)
        canvas.paste(image, (-left, -top))
        return canvas


def _centre_offset(extent: int, crop: int) -> int:
    # An odd margin goes where torchvision puts it: rounded to even when cropping, to the far side when padding.
    return round((extent - crop) / 2) if extent >= crop else -((crop - extent) // 2)


def _to_array(image: Image.Image, channels: int) -> np.ndarray:
    return np.asarray(image).reshape(image.height, image.width, channels)


def _check_size_and_channels(size: tuple[int, int], channels: int) -> None:
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise DataError(f"size is {size}; expected (height, width) in pixels, both positive")
    if channels not in MODES:
        raise DataError(f"channels is {channels}; expected 1 (grey) or 3 (RGB)")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise DataError(f"{name} is {value!r}; expected one of {', '.join(choices)}")
