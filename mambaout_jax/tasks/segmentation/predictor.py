"""Segmentation of image files."""

import itertools
import json
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import numpy as np

from mambaout_jax.models import Model, cpu_compiler_options
from mambaout_jax.tasks.api import Batch, Example, Labels
from mambaout_jax.tasks.images import fit_size, resize_image
from mambaout_jax.tasks.labels import class_name
from mambaout_jax.tasks.pictures import encode_picture
from mambaout_jax.tasks.segmentation.canvases import EvalSizes
from mambaout_jax.tasks.segmentation.drawing import encode_label_png, make_palette, overlay
from mambaout_jax.tasks.segmentation.evaluation import IMAGE_KEYS, Windows, compute_logits, label_images
from mambaout_jax.tasks.segmentation.transforms import Decoder, EvalExample

# Height and width of the parts of label maps that are computed at once, in pixels.
PART_SIDE = 512


class LabelMap(NamedTuple):
    """The predicted classes of the pixels of one image.

    Args:
        labels: uint8 (h, w), at the size of the image.
        names: class names, or none.
        decoder: decodes the image.
    """

    labels: np.ndarray
    names: tuple[str, ...]
    decoder: Decoder

    def to_json(self, limit: int | None = None) -> list[dict[str, Any]]:
        """Return name, index and share of the pixels of the `limit` largest classes."""
        counts = np.bincount(self.labels.ravel())
        order = [index for index in (-counts).argsort(kind="stable").tolist() if counts[index]][:limit]
        return [
            {"class": class_name(self.names, i), "index": i, "share": float(counts[i] / self.labels.size)}
            for i in order
        ]

    def describe(self, limit: int | None = None) -> list[str]:
        """Return a line for each of the `limit` largest classes."""
        return [f"{100 * entry['share']:5.1f} % of pixels  {entry['class']}" for entry in self.to_json(limit)]

    def files(self, image: bytes) -> dict[str, bytes]:
        """Return the label map, a picture of the classes over the image, and their shares, by ending of the name."""
        palette, pixels = make_palette(self.names), self.decoder.image(image)
        return {
            "_labels.png": encode_label_png(self.labels, palette),
            "_overlay.jpg": encode_picture(overlay(pixels, self.labels, palette)),
            "_classes.json": (json.dumps(self.to_json(), indent=2) + "\n").encode(),
        }


class SegmentationPredictor:
    """A model with its image transform.

    Label maps have the size of the image: logits are resized as in an evaluation, in parts of one size, so that the
    model is compiled for the few canvases only. Images are reduced to the longer side of the box first if they are
    evaluated at the original size. A model that accepts only one size gets all images at that size.
    """

    def __init__(self, model: Model, sizes: EvalSizes, labels: Labels, *, flip: bool, windows: Windows | None):
        self._fixed = sizes.fixed if windows is None else None
        self._longest = max(sizes.box) if sizes.scale_of == "image" else None
        most = self._fixed or (max(sizes.box),) * 2
        decoder = Decoder(model.in_chans, model.num_classes, labels.get("exif_orientation", True))
        self._transform = EvalExample(decoder, sizes, sizes.canvases(self._fixed, most))
        self._model, self._flip, self._windows = model, flip, windows
        self._names = tuple(labels.get("class_names") or ())

    @cached_property
    def _compute_logits(self) -> Any:
        run = partial(compute_logits, self._model, flip=self._flip, windows=self._windows)
        return jax.jit(run, static_argnames="shapes", compiler_options=cpu_compiler_options())

    @cached_property
    def _label_part(self) -> Any:
        run = partial(label_images, canvas=(PART_SIDE, PART_SIDE), flip=self._flip)
        return jax.jit(run, static_argnames="shapes", compiler_options=cpu_compiler_options())

    def prepare(self, image: bytes) -> Example:
        """Decode and resize an image.

        Raises:
            DataError: the image cannot be decoded.
        """
        pixels = self._transform.decoder.image(image)
        original = pixels.shape[:2]
        if self._fixed is not None:
            pixels = resize_image(pixels, self._fixed)
        elif self._longest is not None and max(original) > self._longest:
            pixels = resize_image(pixels, fit_size(original, (self._longest, self._longest)))
        return self._transform.place_image(pixels) | {"original": np.array(original, np.int32)}

    def empty(self) -> Example:
        """Return an example without any pixel."""
        return {name: self._transform.empty()[name] for name in IMAGE_KEYS}

    def __call__(self, variables: dict[str, Any], batch: Batch) -> list[LabelMap | str]:
        """Segment a batch, image by image."""
        rows = (jax.tree.map(lambda x, row=row: x[row : row + 1], batch) for row in range(len(batch["original"])))
        return [LabelMap(self._segment(variables, row), self._names, self._transform.decoder) for row in rows]

    def _segment(self, variables: dict[str, Any], row: Batch) -> np.ndarray:
        """Return the label map of a batch of one image; an empty example has no pixels."""
        height, width = row["original"][0].tolist()
        labels = np.empty((height, width), np.uint8)
        if not labels.size:
            return labels
        shapes = self._transform.canvases.images[int(row["shape"][0])]
        logits = self._compute_logits(variables, row, shapes=shapes)
        sizes = {name: row[name] for name in ("sizes", "original")}
        for top, left in itertools.product(range(0, height, PART_SIDE), range(0, width, PART_SIDE)):
            part = labels[top : top + PART_SIDE, left : left + PART_SIDE]
            found = self._label_part(logits, sizes, shapes=shapes, corner=(top, left))[0]
            part[:] = np.asarray(found)[: part.shape[0], : part.shape[1]]
        return labels
