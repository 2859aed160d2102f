"""Transforms from a record of `SegmentationSource` to an example: image and label map together, on the host.

Training follows mmsegmentation 1.2.2: RandomResize, RandomCrop with a limit on the share of one class, RandomFlip and
PhotoMetricDistortion, with the same draws in the same order.
"""

import dataclasses

import cv2
import numpy as np

from mambaout_jax.data import DataError
from mambaout_jax.data.label_maps import IGNORED, check_label_map, decode_label_map
from mambaout_jax.tasks.images import Size, decode_pixels, fit_size, place, resize_image
from mambaout_jax.tasks.segmentation.canvases import Canvases, EvalSizes

Example = dict[str, np.ndarray]

# Crops that are checked; if none of them passes, another one is used unchecked.
CROP_ATTEMPTS = 10


@dataclasses.dataclass(frozen=True)
class Decoder:
    """The decoding of a record to pixels and labels.

    Args:
        channels: 1 (gray) or 3 (RGB).
        num_classes: labels from 0 to num_classes - 1, and 255 for ignored pixels.
        exif_orientation: turn images upright by their EXIF orientation. Label maps are upright already.
    """

    channels: int
    num_classes: int
    exif_orientation: bool = False

    def image(self, encoded: bytes) -> np.ndarray:
        """Decode an image to uint8 (h, w, c).

        Raises:
            DataError: it cannot be decoded.
        """
        return decode_pixels(encoded, self.channels, exif_orientation=self.exif_orientation)

    def __call__(self, record: dict[str, bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Decode image and label map, uint8 (h, w, c) and uint8 (h, w).

        Raises:
            DataError: one of them cannot be decoded, they differ in size, or a label is not a class.
        """
        image, labels = self.image(record["image"]), decode_label_map(record["label_map"])
        check_label_map(labels, image.shape[:2], self.num_classes)
        return image, labels


def resize_labels(labels: np.ndarray, size: Size) -> np.ndarray:
    """Resize a label map to the nearest labels."""
    return cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST)


@dataclasses.dataclass(frozen=True)
class TrainExample:
    """The random training transform of image and label map.

    Args:
        size: (height, width) of the crop, in pixels.
        box: shorter and longer side of the box that an image is resized into.
        ratio: range of a factor of the box.
        cat_max_ratio: largest share of one class among the labeled pixels of a crop, if a few draws find such a crop.
        flip: probability of a horizontal flip.
        photometric: whether brightness, contrast, saturation and hue are changed; only of RGB images.
    """

    decoder: Decoder
    size: Size
    box: Size
    ratio: tuple[float, float]
    cat_max_ratio: float
    flip: float
    photometric: bool

    def __call__(self, record: dict[str, bytes], rng: np.random.Generator) -> Example:
        """Return {"image": uint8 (h, w, c), "label": uint8 (h, w), "size": int32 (2,)}.

        Where the image is smaller than the crop, it is at the top left: "size" is its height and width, and all other
        pixels are ignored.

        Raises:
            DataError: the record cannot be decoded.
        """
        image, labels = self.decoder(record)
        size = fit_size(labels.shape, draw_box(self.box, self.ratio, rng))
        labels = resize_labels(labels, size)
        top, left = draw_crop(labels, self.size, self.cat_max_ratio, rng)
        rows, columns = slice(top, top + self.size[0]), slice(left, left + self.size[1])
        labels, image = labels[rows, columns], resize_image(image, size)[rows, columns]
        if rng.random() < self.flip:
            image, labels = image[:, ::-1], labels[:, ::-1]
        if self.photometric:
            image = distort(image, rng)
        return {
            "image": place(image, self.size, 0),
            "label": place(labels, self.size, IGNORED),
            "size": np.array(labels.shape, np.int32),
        }

    def empty(self) -> Example:
        """Return an example of the same shapes and dtypes without any pixel."""
        return {
            "image": np.zeros((*self.size, self.decoder.channels), np.uint8),
            "label": np.full(self.size, IGNORED, np.uint8),
            "size": np.zeros(2, np.int32),
        }


def draw_box(box: Size, ratio: tuple[float, float], rng: np.random.Generator) -> Size:
    """Scale a box by a random factor."""
    factor = rng.random() * (ratio[1] - ratio[0]) + ratio[0]
    return int(box[0] * factor), int(box[1] * factor)


def draw_crop(labels: np.ndarray, size: Size, cat_max_ratio: float, rng: np.random.Generator) -> Size:
    """Draw the top and the left of a crop with more than one class, none of which has too large a share.

    The last of several draws is used in any case.
    """
    corner = _draw_corner(labels.shape, size, rng)
    if cat_max_ratio < 1:
        for _ in range(CROP_ATTEMPTS):
            crop = labels[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]]
            counts = np.bincount(crop.ravel(), minlength=IGNORED + 1)[:IGNORED]
            if np.count_nonzero(counts) > 1 and counts.max() < cat_max_ratio * counts.sum():
                break
            corner = _draw_corner(labels.shape, size, rng)
    return corner


def _draw_corner(size: Size, crop: Size, rng: np.random.Generator) -> Size:
    top, left = (int(rng.integers(0, max(side - length, 0) + 1)) for side, length in zip(size, crop, strict=True))
    return top, left


def distort(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast, saturation and hue of an RGB image, each with probability 1/2.

    All steps round down to 8 bits. Contrast comes before saturation and hue, or after them, with equal probability.

    Reference: Liu et al., SSD: Single Shot MultiBox Detector, 2016; the ranges are those of mmsegmentation.
    """
    if rng.integers(2):
        image = _scale(image, offset=rng.uniform(-32, 32))
    contrast_first = rng.integers(2)
    if contrast_first and rng.integers(2):
        image = _scale(image, rng.uniform(0.5, 1.5))
    if rng.integers(2):
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 1] = _scale(hsv[..., 1], rng.uniform(0.5, 1.5))
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if rng.integers(2):
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(np.int16) + int(rng.integers(-18, 18))) % 180  # 8-bit hue is in 2 degrees
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if not contrast_first and rng.integers(2):
        image = _scale(image, rng.uniform(0.5, 1.5))
    return image


def _scale(pixels: np.ndarray, factor: float = 1.0, offset: float = 0.0) -> np.ndarray:
    """Return factor * pixels + offset, limited to 0..255 and rounded down, by a table of the 256 values."""
    table = np.clip(np.arange(256, dtype=np.float32) * np.float32(factor) + np.float32(offset), 0, 255)
    return table.astype(np.uint8)[pixels]


@dataclasses.dataclass(frozen=True)
class EvalExample:
    """The evaluation transform: an image at each scale in a canvas, and the label map at the original size."""

    decoder: Decoder
    sizes: EvalSizes
    canvases: Canvases

    def __call__(self, record: dict[str, bytes]) -> Example:
        """Return the example of a record.

        It has "images" and "sizes" by scale ("scale_0"): the canvas with the image, uint8 (h, w, c), and its height
        and width, int32 (2,). If there are canvases of several shapes, pixels are uint8 (n,), large enough for all of
        them, and begin with those of the canvas "shape", int32 (). "original" int32 (2,) has height and width of the
        original image, and "label" uint8 (H, W) its labels in the canvas of all originals.

        Raises:
            DataError: the record cannot be decoded, or its image is larger than the largest one of the dataset.
        """
        image, labels = self.decoder(record)
        if any(side > most for side, most in zip(labels.shape, self.canvases.original, strict=True)):
            height, width = self.canvases.original
            raise DataError(
                f"its image is {labels.shape[0]}x{labels.shape[1]} (height x width); expected at most "
                f"{height}x{width}, as its dataset records"
            )
        return {**self.place_image(image), "label": place(labels, self.canvases.original, IGNORED)}

    def place_image(self, image: np.ndarray) -> Example:
        """Return the part of an example that does not depend on labels."""
        original = image.shape[:2]
        sizes = self.sizes.sizes(original)
        shape = self.canvases.shape_of(sizes)
        example = self._empty_image()
        for scale, size in enumerate(sizes):
            placed = place(resize_image(image, size), self.canvases.images[shape][scale], 0)
            example["images"][f"scale_{scale}"].reshape(-1)[: placed.size] = placed.ravel()
            example["sizes"][f"scale_{scale}"][:] = size
        return {**example, "shape": np.int32(shape), "original": np.array(original, np.int32)}

    def empty(self) -> Example:
        """Return an example of the same shapes and dtypes without any pixel."""
        return {**self._empty_image(), "label": np.full(self.canvases.original, IGNORED, np.uint8)}

    def _empty_image(self) -> Example:
        shapes, channels = self.canvases.images, self.decoder.channels
        scales = range(len(shapes[0]))
        buffers = [
            (*shapes[0][i], channels) if len(shapes) == 1 else channels * self.canvases.num_pixels(i) for i in scales
        ]
        return {
            "images": {f"scale_{i}": np.zeros(buffers[i], np.uint8) for i in scales},
            "sizes": {f"scale_{i}": np.zeros(2, np.int32) for i in scales},
            "shape": np.int32(0),
            "original": np.zeros(2, np.int32),
        }
