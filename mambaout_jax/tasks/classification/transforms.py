"""Transforms from a record of `ImageSource` to an example: the image with its label, on the host."""

import dataclasses

import numpy as np

from mambaout_jax.data import EvalTransform, TrainTransform

Example = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class TrainExample:
    """The training transform: a random crop with augmentation, and the label."""

    image_transform: TrainTransform

    def __call__(self, record: dict, rng: np.random.Generator) -> Example:
        """Return {"image": uint8 (h, w, c), "label": int32 ()}, determined by the record and the state of `rng`.

        Raises:
            DataError: the image cannot be decoded.
        """
        return {"image": self.image_transform(record["image"], rng), "label": np.int32(record["label"])}

    def empty(self) -> Example:
        """Return an example of the same shapes and dtypes: a black image of class 0."""
        return {"image": self.image_transform.empty(), "label": np.int32(0)}


@dataclasses.dataclass(frozen=True)
class EvalExample:
    """The evaluation transform: a deterministic crop, and the labels.

    Args:
        max_labels: largest number of labels of an image in the source.
    """

    image_transform: EvalTransform
    max_labels: int

    def __call__(self, record: dict) -> Example:
        """Return {"image": uint8 (h, w, c), "label": int32 (max_labels,)}, labels padded with -1.

        Raises:
            DataError: the image cannot be decoded or resized.
        """
        labels = np.full(self.max_labels, -1, np.int32)
        given = np.atleast_1d(record["label"])
        labels[: len(given)] = given
        return {"image": self.image_transform(record["image"]), "label": labels}

    def empty(self) -> Example:
        """Return an example of the same shapes and dtypes: a black image without a label."""
        return {"image": self.image_transform.empty(), "label": np.full(self.max_labels, -1, np.int32)}
