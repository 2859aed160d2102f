"""The common part of dense prediction, segmentation and detection: labels with or without names, images in canvases."""

import abc
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt8

from mambaout_jax.data import Source
from mambaout_jax.models import Model, ModelError, create_model
from mambaout_jax.ops.images import blank_outside
from mambaout_jax.tasks.api import Batch, ImportedLabels, Labels, Task, TaskConfig
from mambaout_jax.tasks.errors import TaskError
from mambaout_jax.tasks.images import resize_image
from mambaout_jax.tasks.labels import check_same_classes, num_classes


class KnownDataset(NamedTuple):
    """A well-known dataset: its TFDS name, and its training images and classes."""

    name: str
    num_images: int
    num_classes: int


class DenseTask(Task):
    """The base class of tasks of dense prediction.

    Labels are {"class_names": list}, or {"num_classes": int} for weights without class names. A batch has "image"
    (b, h, w, c), in 0..255, and "size" (b, 2), the height and width that each image has in its canvas.

    Args:
        known_dataset: the dataset of the published recipe.
        expected_model: what the model of a config must be, with an example, for messages.
    """

    config: TaskConfig
    known_dataset: ClassVar[KnownDataset]
    expected_model: ClassVar[str]

    @abc.abstractmethod
    def decode(self, model: Model, source: Source, index: int) -> UInt8[np.ndarray, "h w c"]:
        """Decode the image of a record.

        Raises:
            DataError: it cannot be decoded.
        """

    @staticmethod
    def labels_of_size(num_classes: int) -> Labels:
        """Return labels without names."""
        return {"num_classes": num_classes}

    def known_size(self, split: str) -> tuple[int, Labels] | None:
        """Return the size of the training split of the well-known dataset."""
        known = self.known_dataset
        if split != "train" or self.config.dataset.partition(":")[0] != known.name:
            return None
        return known.num_images, {"num_classes": known.num_classes}

    def check_source(self, source: Source, labels: Labels) -> None:
        """Check that a source has the classes of a model; without class names only their number is compared."""
        check_same_classes(source.name, source.class_names, labels)

    def imported_labels(self, model: Model, labels: Labels) -> ImportedLabels:
        """Return the class names of imported weights, if they have them."""
        own = ("class_names", "num_classes")
        known = {name: value for name, value in labels.items() if name not in own and value is not None}
        names = labels.get("class_names")
        if names is None:
            return ImportedLabels({"num_classes": model.num_classes, "class_names": None} | known, None, "")
        return ImportedLabels({"class_names": list(names)} | known, None, "")

    def model_images(self, model: Model, source: Source, indices: Sequence[int]) -> Float[Array, "b h w c"]:
        """Return normalized images, resized to the model's input size without keeping the aspect ratio."""
        pixels = [resize_image(self.decode(model, source, index), model.input_spec.size) for index in indices]
        return model.input_spec.normalize(jnp.asarray(np.stack(pixels)))

    def build_model(self, labels: Labels) -> Model:
        """Build the model of the config with one output per class."""
        try:
            model = create_model(num_classes=num_classes(labels), **self.config.model)
        except ModelError as error:
            raise ModelError(f"config.model: {error}") from None
        if not self.fits(model):
            raise TaskError(f"config.model.name is {model.name!r}; expected {self.expected_model}")
        return model

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
