"""The annotated objects of an image, as COCO has them, and their masks."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np

from mambaout_jax.data import DataError
from mambaout_jax.errors import reason
from mambaout_jax.extras import importing

# Side of the masks of objects in training, which cover their boxes, in pixels.
OBJECT_MASK_SIDE = 112
Segmentation = Any  # polygons, a run-length encoding, or a bitmap


class Objects:
    """The objects of one image, in pixels of the image as it is stored.

    Args:
        boxes: (x1, y1, x2, y2), float64 (n, 4).
        classes: int32 (n,).
        crowd: which of them stand for many objects, bool (n,).
        areas: in square pixels, float64 (n,).
        segmentations: polygons (lists of x, y, x, y, ...), run-length encodings of COCO, or bitmaps (h, w) of each.
        size: (height, width) of the image.
        ids: of the annotations.
    """

    def __init__(
        self,
        boxes: np.ndarray,
        classes: np.ndarray,
        crowd: np.ndarray,
        areas: np.ndarray,
        segmentations: Sequence[Segmentation],
        size: tuple[int, int],
        ids: Sequence[int],
    ):
        self.boxes, self.classes, self.crowd, self.areas = boxes, classes, crowd, areas
        self.segmentations, self.size, self.ids = segmentations, size, ids

    def __len__(self) -> int:
        return len(self.boxes)

    @cached_property
    def trainable(self) -> np.ndarray:
        """The indices of the objects that training uses.

        Crowds, and boxes outside of the image, without an area, or less than one pixel wide or tall are left out.
        """
        height, width = self.size
        x1, y1, x2, y2 = self.boxes.T
        inside = (np.minimum(x2, width) > np.maximum(x1, 0)) & (np.minimum(y2, height) > np.maximum(y1, 0))
        large = (self.areas > 0) & (x2 - x1 >= 1) & (y2 - y1 >= 1)
        return np.flatnonzero(~self.crowd & inside & large)

    def bitmap(self, index: int) -> np.ndarray:
        """Return the mask of an object, uint8 (h, w).

        Raises:
            DataError: it is encoded for an image of another size.
        """
        segmentation = self.segmentations[index]
        if isinstance(segmentation, np.ndarray):
            return segmentation.astype(np.uint8)
        return decode_masks([self.encoded(index)])[0]

    def encoded(self, index: int) -> dict[str, Any]:
        """Return the mask of an object as a run-length encoding with compressed counts.

        Raises:
            DataError: it is encoded for an image of another size.
        """
        try:
            return encode_segmentation(self.segmentations[index], self.size, self.boxes[index])
        except DataError as error:
            raise DataError(f"annotation {self.ids[index]}: {error}") from None


def encode_segmentation(segmentation: Segmentation, size: tuple[int, int], box: np.ndarray) -> dict[str, Any]:
    """Return any kind of segmentation as a run-length encoding with compressed counts.

    An object without a segmentation, or only with polygons of fewer than three points, has the pixels of its box.
    Preparation has checked the segmentation.

    Raises:
        DataError: the encoding is that of an image of another size.
    """
    mask = mask_tools()
    height, width = size
    if isinstance(segmentation, np.ndarray):
        return mask.encode(np.asfortranarray(segmentation, np.uint8))
    if isinstance(segmentation, Mapping):
        if list(segmentation.get("size", ())) != [height, width]:
            raise DataError(
                f"a mask is encoded for an image of (height, width) {segmentation.get('size')}, and its image has "
                f"{[height, width]}"
            )
        counts = segmentation.get("counts")
        if isinstance(counts, str):
            return {"size": [height, width], "counts": counts.encode()}
        return mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    polygons = [points for points in segmentation or () if len(points) >= 6]
    if not polygons:
        x1, y1, x2, y2 = np.asarray(box, np.float64).tolist()
        polygons = [[x1, y1, x2, y1, x2, y2, x1, y2]]
    return mask.merge(mask.frPyObjects(polygons, height, width))


def decode_masks(encoded: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Return run-length encodings as bitmaps, uint8 (n, h, w); (0, 0, 0) without any."""
    if not encoded:  # pycocotools reads the size of the first one
        return np.zeros((0, 0, 0), np.uint8)
    return np.moveaxis(mask_tools().decode(list(encoded)), -1, 0)


def box_ious(boxes: np.ndarray, objects: Objects) -> np.ndarray:
    """Return the IoU of each box (x1, y1, x2, y2) with each object, (n, m).

    As in COCO's metrics, that with a crowd is the share of the box that the crowd covers.
    """
    if not len(boxes) or not len(objects):
        return np.zeros((len(boxes), len(objects)))
    found, truth = (np.column_stack([x[:, :2], x[:, 2:] - x[:, :2]]).astype(float) for x in (boxes, objects.boxes))
    return mask_tools().iou(found, truth, objects.crowd.astype(np.uint8))


def mask_tools(what: str = "reading masks of objects") -> ModuleType:
    """Return `pycocotools.mask`.

    Args:
        what: what requires it, for the message.

    Raises:
        MissingExtraError: pycocotools is not installed.
    """
    with importing("coco", f"{what} requires pycocotools"):
        from pycocotools import mask
    return mask


def parse_annotations(text: str, index_of: Mapping[int, int], size: tuple[int, int]) -> Objects:
    """Return the objects of an image from the JSON list of its annotations, as COCO has them.

    Args:
        index_of: the class of each category id; annotations of other categories are left out.

    Raises:
        DataError: the JSON is damaged.
    """
    try:
        found = [entry for entry in json.loads(text) if entry["category_id"] in index_of]
        boxes = np.array([entry["bbox"] for entry in found], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return Objects(
            boxes,
            np.array([index_of[entry["category_id"]] for entry in found], np.int32),
            np.array([bool(entry.get("iscrowd", 0)) for entry in found], bool),
            np.array([entry["area"] for entry in found], np.float64),
            [entry.get("segmentation") for entry in found],
            size,
            [entry["id"] for entry in found],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"the annotations of the image are damaged ({reason(error)})") from error


def objects_of_map(instances: np.ndarray, boxes: np.ndarray, classes: np.ndarray) -> Objects:
    """Return the objects of a map that has their numbers, from 1, at their pixels.

    Args:
        boxes: (x1, y1, x2, y2) in 0..1.
    """
    height, width = instances.shape
    masks = [instances == number for number in range(1, len(boxes) + 1)]
    return Objects(
        boxes.astype(np.float64) * [width, height, width, height],
        classes.astype(np.int32),
        np.zeros(len(boxes), bool),
        np.array([np.count_nonzero(mask) for mask in masks], np.float64),
        masks,
        (height, width),
        list(range(len(boxes))),
    )


def crop_mask(bitmap: np.ndarray, box: np.ndarray, side: int) -> np.ndarray:
    """Sample a bitmap at the centers of a grid over a box, bool (side, side); outside of the image it is false."""
    x1, y1, x2, y2 = box
    cells = (np.arange(side) + 0.5) / side
    parts = []
    for low, high, length in ((y1, y2, bitmap.shape[0]), (x1, x2, bitmap.shape[1])):
        pixels = np.floor(low + cells * (high - low)).astype(int)
        parts.append((np.clip(pixels, 0, length - 1), (pixels >= 0) & (pixels < length)))
    (rows, in_rows), (columns, in_columns) = parts
    return (bitmap[np.ix_(rows, columns)] > 0) & in_rows[:, None] & in_columns[None, :]


class MaskPaster:
    """The masks of detections in an image of (height, width), one after the other, in the same memory."""

    def __init__(self, size: tuple[int, int]):
        self._mask = np.zeros(size, np.uint8, order="F")  # as pycocotools encodes masks without a copy
        self._used: tuple[slice, slice] = np.s_[:0, :0]

    def paste(self, logits: np.ndarray, box: np.ndarray) -> np.ndarray:
        """Return the mask of a detection, uint8 (h, w), until the next call, from logits on a grid over its box.

        Probabilities are interpolated between the centers of the grid's cells, with zeros outside of the grid; pixels
        with at least 1/2 belong to the object.

        Args:
            box: (x1, y1, x2, y2) in pixels of the image.
        """
        self._mask[self._used] = 0
        self._used = np.s_[:0, :0]
        x1, y1, x2, y2 = np.asarray(box, np.float64)
        parts = []
        for low, high, length, cells in zip((y1, x1), (y2, x2), self._mask.shape, logits.shape, strict=True):
            if not high > low:
                return self._mask
            margin = (high - low) / (2 * cells)
            first, last = max(int(low - margin), 0), min(int(np.ceil(high + margin)), length)
            if last <= first:
                return self._mask
            at = (np.arange(first, last) + 0.5 - low) / (high - low) * cells - 0.5
            weights = np.maximum(0.0, 1 - np.abs(at[:, None] - np.arange(cells))).astype(np.float32)
            parts.append((slice(first, last), weights))
        (rows, of_rows), (columns, of_columns) = parts
        probabilities = 1 / (1 + np.exp(-logits.astype(np.float32)))
        self._used = rows, columns
        self._mask[rows, columns] = of_rows @ probabilities @ of_columns.T >= 0.5
        return self._mask
