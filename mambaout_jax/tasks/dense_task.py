"""The common part of dense prediction, segmentation and detection: images in canvases."""

import abc
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt8

from mambaout_jax.data import Source
from mambaout_jax.models import Model
from mambaout_jax.ops.images import blank_outside
from mambaout_jax.tasks.api import Batch, Labels
from mambaout_jax.tasks.class_task import ClassTask
from mambaout_jax.tasks.images import resize_image


class KnownDataset(NamedTuple):
    """A well-known dataset: its TFDS name, and its training images and classes."""

    name: str
    num_images: int
    num_classes: int


class DenseTask(ClassTask):
    """The base class of tasks of dense prediction.

    A batch has "image" (b, h, w, c), in 0..255, and "size" (b, 2), the height and width that each image has in its
    canvas.

    Args:
        known_dataset: the dataset of the published recipe.
    """

    known_dataset: ClassVar[KnownDataset]

    @abc.abstractmethod
    def decode(self, model: Model, source: Source, index: int) -> UInt8[np.ndarray, "h w c"]:
        """Decode the image of a record.

        Raises:
            DataError: it cannot be decoded.
        """

    def known_size(self, split: str) -> tuple[int, Labels] | None:
        """Return the size of the training split of the well-known dataset."""
        known = self.known_dataset
        if split != "train" or self.config.dataset.partition(":")[0] != known.name:
            return None
        return known.num_images, {"num_classes": known.num_classes}

    def model_images(self, model: Model, source: Source, indices: Sequence[int]) -> Float[Array, "b h w c"]:
        """Return normalized images, resized to the model's input size without keeping the aspect ratio."""
        pixels = [resize_image(self.decode(model, source, index), model.input_spec.size) for index in indices]
        return model.input_spec.normalize(jnp.asarray(np.stack(pixels)))

    def prepare_batch(self, model: Model, batch: Batch, key: Key[Array, ""]) -> Batch:
        """Normalize images; the pixels around smaller images have the mean color."""
        images = blank_outside(model.input_spec.normalize(batch["image"]), batch["size"])
        return {**batch, "image": images}

    def preprocessing(self, model: Model, labels: Labels) -> dict[str, Any]:
        """Return the resizing of a whole image to the input size of the model."""
        return {
            "crop_mode": "squash",
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "antialias": False,
            "exif_orientation": labels.get("exif_orientation", True),
        }
