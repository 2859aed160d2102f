"""Classification of images."""

import json
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from mambaout_jax.data import EvalTransform
from mambaout_jax.data.imagenet_classes import class_description, class_word
from mambaout_jax.models import Model, cpu_compiler_options
from mambaout_jax.tasks.api import Batch, Example, Labels
from mambaout_jax.tasks.labels import class_name


class ClassProbabilities(NamedTuple):
    """The class probabilities of one image.

    Classes of ImageNet are shown by their first word in WordNet, others by their name, or by their index if they have
    none.

    Args:
        probabilities: float32 (k,).
        names: class names, or none.
        top: number of classes that are shown if no limit is given.
    """

    probabilities: np.ndarray
    names: tuple[str, ...]
    top: int = 5

    def to_json(self, limit: int | None = None) -> list[dict[str, Any]]:
        """Return name, index and probability of the `limit` most probable classes, and the words of WordNet."""
        return [self._entry(index) for index in self._order(limit)]

    def describe(self, limit: int | None = None) -> list[str]:
        """Return a line for each of the `limit` most probable classes."""
        return [f"{self._percent(index):5.1f} %  {self._word(index)}" for index in self._order(limit)]

    def files(self, image: bytes) -> dict[str, bytes]:
        """Return the probabilities of all classes as JSON."""
        return {"_classes.json": (json.dumps(self.to_json(len(self.probabilities)), indent=2) + "\n").encode()}

    def _order(self, limit: int | None) -> list[int]:
        limit = self.top if limit is None else limit
        return (-self.probabilities).argsort(kind="stable")[:limit].tolist()

    def _word(self, index: int) -> str:
        return class_word(class_name(self.names, index))

    def _percent(self, index: int) -> float:
        return 100 * float(self.probabilities[index])

    def _entry(self, index: int) -> dict[str, Any]:
        name = class_name(self.names, index)
        described = {} if (words := class_description(name)) is None else {"description": words}
        return {"class": name, **described, "index": index, "probability": float(self.probabilities[index])}

    def __repr__(self) -> str:
        shown = ", ".join(f"{self._word(index)} {self._percent(index):.1f} %" for index in self._order(None))
        return f"<{shown}>"


def classifies(model: Model) -> bool:
    """Return whether a model has one embedding, and therefore one vector of logits, per image."""
    return model.has_method("embed")


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

    def prepare(self, image: bytes | Image.Image) -> Example:
        """Decode, resize and crop an image.

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
