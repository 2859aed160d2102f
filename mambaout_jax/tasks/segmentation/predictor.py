"""Segmentation of image files."""

import json
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import numpy as np

from mambaout_jax.models import Model, cpu_compiler_options
from mambaout_jax.tasks.api import Batch, Example, Labels
from mambaout_jax.tasks.segmentation.canvases import EvalSizes
from mambaout_jax.tasks.segmentation.drawing import encode_label_png, encode_picture, make_palette, overlay
from mambaout_jax.tasks.segmentation.evaluation import IMAGE_KEYS, Windows, segment
from mambaout_jax.tasks.segmentation.transforms import Decoder, EvalExample, resize_image, resize_labels


class LabelMap(NamedTuple):
    """The predicted classes of the pixels of one image.

    Args:
        labels: uint8 (h, w), at the size of the image, or smaller for large images.
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
        return [{"class": self._name(i), "index": i, "share": float(counts[i] / self.labels.size)} for i in order]

    def describe(self, limit: int | None = None) -> list[str]:
        """Return a line for each of the `limit` largest classes."""
        return [f"{100 * entry['share']:5.1f} %  {entry['class']}" for entry in self.to_json(limit)]

    def files(self, image: bytes) -> dict[str, bytes]:
        """Return the label map, a picture of the classes over the image, and their shares, by ending of the name."""
        palette, pixels = make_palette(self.names), self.decoder.image(image)
        labels = resize_labels(self.labels, pixels.shape[:2])
        return {
            "_labels.png": encode_label_png(labels, palette),
            "_overlay.jpg": encode_picture(overlay(pixels, labels, palette)),
            "_classes.json": (json.dumps(self.to_json(), indent=2) + "\n").encode(),
        }

    def _name(self, index: int) -> str:
        return self.names[index] if index < len(self.names) else str(index)


class SegmentationPredictor:
    """A model with its image transform, compiled once for batches of one size.

    Label maps have the size of the image. Images that exceed a square of the longer side of the box are reduced first.
    A model that accepts only one size gets all images at that size.
    """

    def __init__(self, model: Model, sizes: EvalSizes, labels: Labels, *, flip: bool, windows: Windows | None):
        self._fixed = sizes.fixed if windows is None else None
        longest = max(sizes.box)
        canvases = sizes.canvases(self._fixed, self._fixed or (longest, longest))
        decoder = Decoder(model.in_chans, model.num_classes, labels.get("exif_orientation", True))
        self._transform = EvalExample(decoder, sizes, canvases)
        self._model, self._flip, self._windows = model, flip, windows
        self._names = tuple(labels.get("class_names") or ())

    @cached_property
    def _segment(self) -> Any:
        run = partial(segment, self._model, canvases=self._transform.canvases, flip=self._flip, windows=self._windows)
        return jax.jit(run, compiler_options=cpu_compiler_options())

    def prepare(self, image: bytes) -> Example:
        """Decode and resize an image.

        Raises:
            DataError: the image cannot be decoded.
        """
        pixels, most = self._transform.decoder.image(image), self._transform.canvases.original
        factor = min(1.0, *(limit / side for side, limit in zip(pixels.shape, most, strict=False)))
        size = self._fixed or tuple(max(1, int(side * factor + 0.5)) for side in pixels.shape[:2])
        return self._transform.place_image(resize_image(pixels, size))

    def empty(self) -> Example:
        """Return an example without any pixel."""
        return {name: self._transform.empty()[name] for name in IMAGE_KEYS}

    def __call__(self, variables: dict[str, Any], batch: Batch) -> list[LabelMap | str]:
        """Segment a batch."""
        labels = np.asarray(self._segment(variables, batch))
        return [
            LabelMap(row[: size[0], : size[1]], self._names, self._transform.decoder)
            for row, size in zip(labels, np.asarray(batch["original"]), strict=True)
        ]
