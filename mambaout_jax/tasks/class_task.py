"""The common part of tasks whose labels are classes."""

from collections.abc import Mapping
from typing import Any, ClassVar

from mambaout_jax.data import Source
from mambaout_jax.models import Model, ModelError, create_model
from mambaout_jax.tasks.api import ImportedLabels, Labels, Task, TaskConfig
from mambaout_jax.tasks.errors import TaskError
from mambaout_jax.tasks.labels import check_same_classes, num_classes


class ClassTask(Task):
    """The base class of tasks whose labels are {"class_names": list}, or {"num_classes": int} without names.

    Args:
        expected_model: what the model of a config must be, with an example, for messages.
    """

    config: TaskConfig
    expected_model: ClassVar[str]

    @property
    def model_options(self) -> Mapping[str, Any]:
        """The options of the model."""
        return self.config.model

    @staticmethod
    def labels_of_size(num_classes: int) -> Labels:
        """Return labels without names."""
        return {"num_classes": num_classes}

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

    def build_model(self, labels: Labels) -> Model:
        """Build the model of the config with one output per class."""
        try:
            model = create_model(num_classes=num_classes(labels), **self.model_options)
        except ModelError as error:
            raise ModelError(f"config.model: {error}") from None
        if not self.fits(model):
            raise TaskError(f"config.model.name is {model.name!r}; expected {self.expected_model}")
        return model
