"""Class labels of datasets and models: {"class_names": list}, or {"num_classes": int} without names."""

from collections.abc import Sequence

from mambaout_jax.data.names import normalize_name
from mambaout_jax.models import Model
from mambaout_jax.tasks.api import Labels, Task
from mambaout_jax.tasks.errors import TaskError
from mambaout_jax.words import count


def num_classes(labels: Labels) -> int:
    """Return the number of classes.

    Raises:
        TaskError: the labels have neither names nor a number.
    """
    names, number = labels.get("class_names"), labels.get("num_classes")
    if isinstance(names, list | tuple):
        return len(names)
    if names is None and isinstance(number, int) and number > 0:
        return number
    raise TaskError(f"the labels of a model are {dict(labels)}; expected class names or the number of classes")


def class_name(names: Sequence[str], index: int) -> str:
    """Return the name of a class, or its index as text without one."""
    return names[index] if 0 <= index < len(names) else str(index)


def stated_labels(task: Task, model: Model, labels: Labels) -> Labels:
    """Return the labels of weights, to compare with a dataset; for weights without names none are assumed."""
    if not labels or labels.get("class_names", ()) is None:
        return task.labels_of_size(model.num_classes)
    return task.imported_labels(model, labels).labels


def check_same_classes(dataset: str, class_names: Sequence[str], labels: Labels) -> None:
    """Check that a dataset has the classes of a model; without class names only their number is compared.

    Raises:
        TaskError: they differ.
    """
    expected, names = num_classes(labels), labels.get("class_names") or class_names
    if len(class_names) != expected:
        raise TaskError(
            f"dataset {dataset!r} has {count(len(class_names), 'class')} but the model has "
            f"{expected}; expected a dataset with the classes of the model"
        )
    for index, (theirs, ours) in enumerate(zip(class_names, names, strict=True)):
        if normalize_name(theirs) != normalize_name(ours):
            raise TaskError(
                f"class {index} is {theirs!r} in dataset {dataset!r} but {ours!r} in the model; expected a "
                "dataset with the classes of the model"
            )
