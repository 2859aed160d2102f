"""Transforms from an annotated image to an example: image, boxes and masks together, on the host.

Images are resized into a box as in mmdetection, and placed at the upper left of a canvas. All images of a dataset that
are equally large have one canvas; others have two of equal area, one for each orientation.
"""

import dataclasses

import numpy as np

from mambaout_jax.data import DataError
from mambaout_jax.tasks.detection.losses import OBJECT_MASK_SIDE
from mambaout_jax.tasks.detection.objects import Objects, crop_mask
from mambaout_jax.tasks.detection.source import Annotated
from mambaout_jax.tasks.images import Size, decode_pixels, fit_size, place, resize_image

Example = dict[str, np.ndarray]

# Sides of canvases are multiples of this, the stride of the coarsest map of a backbone, in pixels.
MULTIPLE = 32


@dataclasses.dataclass(frozen=True)
class Canvases:
    """The static sizes of the images of a dataset: one, or one of wide images and one of upright ones.

    Args:
        box: shorter and longer side of the box that images are resized into.
        sizes: (height, width) of the canvases.
    """

    box: Size
    sizes: tuple[Size, ...]

    @classmethod
    def of_images(cls, size: Size | None, box: Size) -> "Canvases":
        """Return the canvases of images of one (height, width), or of any size if it is None."""
        if size is not None:
            return cls(box, (_round_up(fit_size(size, box)),))
        wide = _round_up(tuple(sorted(box)))
        return cls(box, tuple(dict.fromkeys((wide, wide[::-1]))))

    def index_of(self, size: Size) -> int:
        """Return the canvas of an image of an original (height, width): the second one if it is higher than wide."""
        return int(len(self.sizes) > 1 and size[0] > size[1])


def _round_up(size: Size) -> Size:
    height, width = (-(-side // MULTIPLE) * MULTIPLE for side in size)
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
    canvases: Canvases

    def decode(self, encoded: bytes) -> np.ndarray:
        """Decode an image to uint8 (h, w, c).

        Raises:
            DataError: it cannot be decoded.
        """
        return decode_pixels(encoded, self.channels, exif_orientation=self.exif_orientation)

    def place_image(self, image: np.ndarray, *, flip: bool = False) -> Example:
        """Return {"image": uint8 (h, w, c), "size": int32 (2,)}: an image in its canvas, its height and width there."""
        size = fit_size(image.shape[:2], self.canvases.box)
        resized = resize_image(image, size)
        canvas = self.canvases.sizes[self.canvases.index_of(image.shape[:2])]
        placed = place(resized[:, ::-1] if flip else resized, canvas, 0)
        return {"image": placed, "size": np.array(size, np.int32)}

    def empty(self) -> Example:
        """Return an example of the first canvas without any pixel."""
        return {"image": np.zeros((*self.canvases.sizes[0], self.channels), np.uint8), "size": np.zeros(2, np.int32)}


@dataclasses.dataclass(frozen=True)
class TrainExample:
    """The random training transform of an image and its objects.

    Args:
        max_objects: of an image; of more, the largest ones are kept.
        flip: probability of a horizontal flip.
    """

    images: ImageTransform
    max_objects: int
    flip: float

    def __call__(self, record: Annotated, rng: np.random.Generator) -> Example:
        """Return the example of a record: that of `ImageTransform.place_image`, and its objects.

        "boxes" float32 (m, 4) in pixels of the canvas, "classes" int32 (m,), "present" bool (m,), false for padding,
        and "masks" uint8 (m, 112, 14): on a grid over the box, with 8 pixels in a byte.

        Raises:
            DataError: the record cannot be decoded.
        """
        image = self.images.decode(record.image)
        check_size(image.shape[:2], record.objects)
        flip = rng.random() < self.flip
        example = self.images.place_image(image, flip=flip)
        return example | self._place_objects(record.objects, example["size"], flip=flip)

    def empty(self) -> Example:
        """Return an example of the same shapes and dtypes, of the first canvas, without any pixel or object."""
        return self.images.empty() | self._no_objects()

    def _no_objects(self) -> Example:
        side, most = OBJECT_MASK_SIDE, self.max_objects
        return {
            "boxes": np.zeros((most, 4), np.float32),
            "classes": np.zeros(most, np.int32),
            "present": np.zeros(most, bool),
            "masks": np.zeros((most, side, side // 8), np.uint8),
        }

    def _place_objects(self, objects: Objects, size: np.ndarray, *, flip: bool) -> Example:
        chosen = objects.trainable
        if len(chosen) > self.max_objects:
            largest = np.argsort(-objects.areas[chosen], kind="stable")[: self.max_objects]
            chosen = chosen[np.sort(largest)]
        boxes = scale_boxes(objects.boxes[chosen], size / np.array(objects.size), size)
        example = self._no_objects()
        to_original = (np.array(objects.size) / size)[[1, 0, 1, 0]]
        for row, index in enumerate(chosen):
            mask = crop_mask(objects.bitmap(index), boxes[row] * to_original, OBJECT_MASK_SIDE)
            example["masks"][row] = np.packbits(mask[:, ::-1] if flip else mask, axis=-1)
        if flip:
            boxes = boxes[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [size[1], 0, size[1], 0]
        count = len(chosen)
        example["boxes"][:count], example["classes"][:count] = boxes, objects.classes[chosen]
        example["present"][:count] = True
        return example


def scale_boxes(boxes: np.ndarray, factors: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Return boxes times (vertical, horizontal) factors, clipped to an image of (height, width)."""
    factors, limits = factors[[1, 0, 1, 0]], np.asarray(size)[[1, 0, 1, 0]]
    return np.clip(boxes * factors, 0, limits)


def check_size(size: Size, objects: Objects) -> None:
    """Check that a decoded image has the size that its annotations give it.

    Raises:
        DataError: it has another one.
    """
    if size != tuple(objects.size):
        raise DataError(f"its image is {size[1]}x{size[0]}, and {objects.size[1]}x{objects.size[0]} by its annotations")


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
        example = self.images.place_image(image)
        return self._flatten(example) | {
            "original": np.array(image.shape[:2], np.int32),
            "canvas": np.int32(self.images.canvases.index_of(image.shape[:2])),
        }

    def empty(self) -> Example:
        """Return an example of the same shapes and dtypes without any pixel."""
        return self._flatten(self.images.empty()) | {"original": np.zeros(2, np.int32), "canvas": np.int32(0)}

    def _flatten(self, example: Example) -> Example:
        if len(self.images.canvases.sizes) == 1:
            return example
        return example | {"image": example["image"].reshape(-1)}
