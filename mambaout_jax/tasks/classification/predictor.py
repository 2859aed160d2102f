"""Classification of image files."""

from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np

from mambaout_jax.data import EvalTransform
from mambaout_jax.models import Model, cpu_compiler_options
from mambaout_jax.tasks.api import Batch, Example, Labels


class ClassProbabilities(NamedTuple):
    """The class probabilities of one image.

    Args:
        names: class names; classes without a name are shown by their index.
    """

    probabilities: np.ndarray
    names: tuple[str, ...]

    def to_json(self, limit: int) -> list[dict[str, Any]]:
        """Return name, index and probability of the `limit` most probable classes."""
        order = (-self.probabilities).argsort(kind="stable")[:limit]
        return [
            {
                "class": self.names[index] if index < len(self.names) else str(index),
                "index": int(index),
                "probability": float(self.probabilities[index]),
            }
            for index in order
        ]

    def describe(self, limit: int) -> list[str]:
        """Return a line for each of the `limit` most probable classes."""
        return [f"{100 * guess['probability']:5.1f} %  {guess['class']}" for guess in self.to_json(limit)]


class ImagePredictor:
    """A model with its image transform, compiled once for batches of one size."""

    def __init__(self, model: Model, transform: EvalTransform, labels: Labels):
        self._model = model
        self._transform = transform
        self._names = tuple(labels.get("class_names") or ())

    @cached_property
    def _probabilities(self) -> Any:
        def probabilities(variables, images):
            return jax.nn.softmax(self._model.apply(variables, self._model.input_spec.normalize(images)))

        return jax.jit(probabilities, compiler_options=cpu_compiler_options())

    def prepare(self, image: bytes) -> Example:
        """Decode, resize and crop an encoded image.

        Raises:
            DataError: the image cannot be decoded.
        """
        return {"image": self._transform(image)}

    def empty(self) -> Example:
        """Return an example of zeros."""
        return {"image": self._transform.empty()}

    def __call__(self, variables: dict[str, Any], batch: Batch) -> list[ClassProbabilities | str]:
        """Classify a batch; rows without finite probabilities get an error message."""
        return [
            ClassProbabilities(row, self._names)
            if np.isfinite(row).all()
            else "the probabilities are not finite; the weights are probably from a diverged run"
            for row in np.asarray(self._probabilities(variables, batch["image"]))
        ]
