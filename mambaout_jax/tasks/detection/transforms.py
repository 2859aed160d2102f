"""Transforms from an annotated image to an example: image, boxes and masks together, on the host.

Images are resized into a box as in mmdetection, and placed at the upper left of a canvas. All images of a dataset that
are equally large have one canvas; others have two of equal area, one for each orientation.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from mambaout_jax.data import DataError
from mambaout_jax.tasks.detection.objects import OBJECT_MASK_SIDE, Objects, crop_mask
from mambaout_jax.tasks.detection.source import Annotated
from mambaout_jax.tasks.images import Size, decode_pixels, fit_size, place, resize_image, round_up

Example = dict[str, np.ndarray]

# The multi-scale recipe of DETR and of Swin's "3x" detectors: shorter sides of images, those before a crop, and the
# range of the sides of the crop; in pixels, for images with a shorter side of 800 px otherwise.
SHORT_SIDES, CROP_SIDES, CROP_RANGE = tuple(range(480, 801, 32)), (400, 500, 600), (384, 600)


@dataclasses.dataclass(frozen=True)
class OrientedCanvases:
    """The static sizes of the images of a dataset: one, or one of landscape and one of portrait images.

    Args:
        box: shorter and longer side of the box that images are resized into.
        sizes: (height, width) of the canvases.
    """

    box: Size
    sizes: tuple[Size, ...]

    @classmethod
    def of_images(cls, size: Size | None, box: Size) -> "OrientedCanvases":
        """Return the canvases of images of one (height, width), or of any size if it is None."""
        if size is not None:
            return cls(box, (round_up(fit_size(size, box)),))
        wide = round_up(tuple(sorted(box)))
        return cls(box, tuple(dict.fromkeys((wide, wide[::-1]))))

    def index_of(self, size: Size) -> int:
        """Return the canvas of an image of an original (height, width): the second one if it is taller than wide."""
        return int(len(self.sizes) > 1 and size[0] > size[1])

    def reduce(self, size: Size, original: Size) -> Size:
        """Return a (height, width) at which an image does not exceed its canvas, the same one if it does not."""
        canvas = self.sizes[self.index_of(original)]
        factor = min(1.0, *(limit / side for limit, side in zip(canvas, size, strict=True)))
        height, width = (max(1, int(side * factor)) for side in size)
        return height, width


@dataclasses.dataclass(frozen=True)
class ImageTransform:
    """The resizing of an image into its canvas.

    Args:
        channels: 1 (gray) or 3 (RGB).
        exif_orientation: turn images upright by their EXIF orientation; annotations are those of upright images.
    """

    channels: int
    exif_orientation: bool
    canvases: OrientedCanvases

    def decode(self, encoded: bytes) -> np.ndarray:
        """Decode an image to uint8 (h, w, c).

        Raises:
            DataError: it cannot be decoded.
        """
        return decode_pixels(encoded, self.channels, exif_orientation=self.exif_orientation)

    def view(self, size: Size) -> "View":
        """Return the whole of an image of a (height, width), resized into the box and its canvas."""
        return View(Window(0.0, 0.0, *size), self.canvases.reduce(fit_size(size, self.canvases.box), size))

    def place_image(self, image: np.ndarray, canvas: int, *, flip: bool = False) -> Example:
        """Return {"image": uint8 (h, w, c), "size": int32 (2,)}: a resized image in a canvas, its height and width."""
        placed = place(image[:, ::-1] if flip else image, self.canvases.sizes[canvas], 0)
        return {"image": placed, "size": np.array(image.shape[:2], np.int32)}

    def empty(self) -> Example:
        """Return an example of the first canvas without any pixel."""
        return {"image": np.zeros((*self.canvases.sizes[0], self.channels), np.uint8), "size": np.zeros(2, np.int32)}


class Window(NamedTuple):
    """A part of an original image, in its pixels."""

    top: float
    left: float
    height: float
    width: float


class View(NamedTuple):
    """A part of an original image, and its (height, width) in the canvas."""

    window: Window
    size: Size

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Return boxes of the original image as boxes in the canvas, clipped to the image there."""
        top, left, *sides = self.window
        factors = np.divide(self.size, sides)[[1, 0, 1, 0]]
        return np.clip((boxes - [left, top, left, top]) * factors, 0, np.array(self.size)[[1, 0, 1, 0]])

    def original_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Return boxes in the canvas as boxes of the original image."""
        top, left, *sides = self.window
        return boxes * np.divide(sides, self.size)[[1, 0, 1, 0]] + [left, top, left, top]


@dataclasses.dataclass(frozen=True)
class TrainExample:
    """The random training transform of an image and its objects.

    Args:
        max_objects: of an image; of more, the largest ones are kept.
        flip: probability of a horizontal flip.
        multi_scale: draw the size of the image, and whether it is cropped first.
    """

    images: ImageTransform
    max_objects: int
    flip: float
    multi_scale: bool = False

    def __call__(self, record: Annotated, rng: np.random.Generator) -> Example:
        """Return the example of a record: that of `ImageTransform.place_image`, and its objects.

        "boxes" float32 (m, 4) in pixels of the canvas, "classes" int32 (m,), "present" bool (m,), false for padding,
        and "masks" uint8 (m, 112, 14): on a grid over the box, with 8 pixels in a byte.

        Raises:
            DataError: the record cannot be decoded.
        """
        image = self.images.decode(record.image)
        size = image.shape[:2]
        check_size(size, record.objects)
        canvas = self.images.canvases.index_of(size)
        if self.multi_scale:
            image, view = self._draw_view(image, rng)
        else:
            view = self.images.view(size)
            image = resize_image(image, view.size)
        flip = rng.random() < self.flip
        example = self.images.place_image(image, canvas, flip=flip)
        return example | self._place_objects(record.objects, view, flip=flip)

    def empty(self) -> Example:
        """Return an example of the same shapes and dtypes, of the first canvas, without any pixel or object."""
        return self.images.empty() | self._no_objects()

    def _draw_view(self, image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, View]:
        """Resize an image to a random size, after a random crop with probability 1/2, and return the part of it."""
        short, long = sorted(self.images.canvases.box)
        original = image.shape[:2]
        window = Window(0.0, 0.0, *original)
        if rng.integers(2):
            image = resize_image(image, fit_size(original, (_scaled(short, rng.choice(CROP_SIDES)), long)))
            (top, height), (left, width) = (_draw_range(side, short, rng) for side in image.shape[:2])
            factors = np.divide(original, image.shape[:2])
            window = Window(top * factors[0], left * factors[1], height * factors[0], width * factors[1])
            image = image[top : top + height, left : left + width]
        size = fit_size(image.shape[:2], (_scaled(short, rng.choice(SHORT_SIDES)), long))
        size = self.images.canvases.reduce(size, original)  # a crop may have the other orientation
        return resize_image(image, size), View(window, size)

    def _no_objects(self) -> Example:
        side, most = OBJECT_MASK_SIDE, self.max_objects
        return {
            "boxes": np.zeros((most, 4), np.float32),
            "classes": np.zeros(most, np.int32),
            "present": np.zeros(most, bool),
            "masks": np.zeros((most, side, side // 8), np.uint8),
        }

    def _place_objects(self, objects: Objects, view: View, *, flip: bool) -> Example:
        chosen = objects.trainable
        boxes = view.boxes(objects.boxes[chosen])
        inside = (boxes[:, 2:] > boxes[:, :2]).all(1)
        chosen, boxes = chosen[inside], boxes[inside]
        if len(chosen) > self.max_objects:
            kept = np.sort(np.argsort(-objects.areas[chosen], kind="stable")[: self.max_objects])
            chosen, boxes = chosen[kept], boxes[kept]
        example = self._no_objects()
        for row, (index, box) in enumerate(zip(chosen, view.original_boxes(boxes), strict=True)):
            mask = crop_mask(objects.bitmap(index), box, OBJECT_MASK_SIDE)
            example["masks"][row] = np.packbits(mask[:, ::-1] if flip else mask, axis=-1)
        if flip:
            width = view.size[1]
            boxes = boxes[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [width, 0, width, 0]
        count = len(chosen)
        example["boxes"][:count], example["classes"][:count] = boxes, objects.classes[chosen]
        example["present"][:count] = True
        return example


def _scaled(short: int, side: int) -> int:
    """Scale a side from mmdetection's box, whose shorter side is 800 px, to another box."""
    return max(1, round(side * short / 800))


def _draw_range(side: int, short: int, rng: np.random.Generator) -> tuple[int, int]:
    """Draw the start and the length of a crop of one axis."""
    low, high = (min(side, _scaled(short, limit)) for limit in CROP_RANGE)
    length = int(rng.integers(low, high + 1))
    return int(rng.integers(0, side - length + 1)), length


def check_size(size: Size, objects: Objects) -> None:
    """Check that a decoded image has the size that its annotations give it.

    Raises:
        DataError: it has another one.
    """
    if size != tuple(objects.size):
        raise DataError(
            f"its image is {size[0]}x{size[1]} (height x width), and {objects.size[0]}x{objects.size[1]} by its "
            "annotations"
        )


@dataclasses.dataclass(frozen=True)
class EvalExample:
    """The evaluation transform: an image in its canvas, and its original size."""

    images: ImageTransform

    def __call__(self, record: Annotated) -> Example:
        """Return the example of a record.

        It is that of `ImageTransform.place_image`, "original" int32 (2,), its size, and "canvas" int32 (), the number
        of its canvas. If there are several canvases, pixels are flat.

        Raises:
            DataError: the record cannot be decoded.
        """
        image = self.images.decode(record.image)
        check_size(image.shape[:2], record.objects)
        return self.of_image(image)

    def of_image(self, image: np.ndarray) -> Example:
        """Return the example of a decoded image."""
        size = image.shape[:2]
        canvas = self.images.canvases.index_of(size)
        example = self.images.place_image(resize_image(image, self.images.view(size).size), canvas)
        return self._flatten(example) | {"original": np.array(size, np.int32), "canvas": np.int32(canvas)}

    def empty(self) -> Example:
        """Return an example of the same shapes and dtypes without any pixel."""
        return self._flatten(self.images.empty()) | {"original": np.zeros(2, np.int32), "canvas": np.int32(0)}

    def _flatten(self, example: Example) -> Example:
        if len(self.images.canvases.sizes) == 1:
            return example
        return example | {"image": example["image"].reshape(-1)}
