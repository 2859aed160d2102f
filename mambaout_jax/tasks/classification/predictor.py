"""Classify image files."""

from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np

from mambaout_jax.data import EvalTransform
from mambaout_jax.models import Model, cpu_compiler_options
from mambaout_jax.tasks.api import Batch, Example, Labels


class ClassProbabilities(NamedTuple):
    """The probabilities of one image.

    Args:
        names: of the classes; a class past their end is named by its index.
    """

    probabilities: np.ndarray
    names: tuple[str, ...]

    def to_json(self, limit: int) -> list[dict[str, Any]]:
        """Return class, index and probability of the likeliest classes."""
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
        """Return a line for each of the likeliest classes."""
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
            DataError: it does not decode.
        """
        return {"image": self._transform(image)}

    def empty(self) -> Example:
        """Return an example of zeros."""
        return {"image": np.zeros((*self._transform.size, self._transform.channels), np.uint8)}

    def __call__(self, variables: dict[str, Any], batch: Batch) -> list[ClassProbabilities | str]:
        """Classify a batch; a row without finite probabilities gets a sentence instead."""
        return [
            ClassProbabilities(row, self._names)
            if np.isfinite(row).all()
            else "the weights give no finite probabilities; they come from a diverged run"
            for row in np.asarray(self._probabilities(variables, batch["image"]))
        ]
