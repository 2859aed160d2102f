"""The teacher of a distillation: a trained model whose predictions are targets of the loss."""

import hashlib
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from mambaout_jax.models import Model, ModelError, create_model
from mambaout_jax.run.errors import RunError
from mambaout_jax.run.workdir import is_workdir, restore_run
from mambaout_jax.tasks.api import Labels, Task
from mambaout_jax.tasks.errors import TaskError
from mambaout_jax.tasks.labels import stated_labels
from mambaout_jax.tasks.registry import find_task
from mambaout_jax.weights import (
    UnknownVariantError,
    WeightsError,
    check_unambiguous,
    find_license,
    from_checkpoint,
    read_checkpoint,
    resample_variables,
    resolve_model,
)


class Teacher(NamedTuple):
    """A trained model for the images of another model.

    Args:
        model: built for the image size and the dtype of the model in training.
        variables: its weights, NumPy arrays.
        labels: the labels of its outputs.
        description: the origin of the weights, for messages.
        fingerprint: hash of the weights as they were loaded.
        license: name of their license; None if it is unknown.
        trained_size: (height, width) of the images that it was trained on.
    """

    model: Model
    variables: dict[str, Any]
    labels: Labels
    description: str
    fingerprint: str
    license: str | None
    trained_size: tuple[int, int]

    @property
    def other_size(self) -> str:
        """A remark if it was trained on images of another size; empty otherwise."""
        (height, width), (rows, columns) = self.trained_size, self.model.input_spec.size
        if (height, width) == (rows, columns):
            return ""
        return f", trained at {height}x{width} px and run at {rows}x{columns} px"

    @property
    def record(self) -> dict[str, str]:
        """The entries of environment.json that identify the weights."""
        license = {} if self.license is None else {"teacher_license": self.license}
        return {"teacher": self.description, "teacher_fingerprint": self.fingerprint, **license}


def load_teacher(task: Task, model: Model, labels: Labels) -> Teacher | None:
    """Load the teacher of a task for the images of a model; None if the task has none.

    The teacher may be of any family. Its position embeddings are resampled to the image size of the model.

    Args:
        model: the model in training.
        labels: the labels of its dataset.

    Raises:
        RunError: the source cannot be read, was trained for another task or other labels, or does not take images of
            the size of the model's.
    """
    found = task.teacher()
    if found is None:
        return None
    try:
        loaded = _restore(found.source) if is_workdir(found.source) else _convert(found.source, task)
    except UnknownVariantError as error:  # a config cannot name the variant of weights
        raise RunError(
            f"config.{found.key}: {error}; import it with python -m mambaout_jax convert import FILE --model NAME "
            f"--out WORKDIR, and set config.{found.key} to this workdir"
        ) from error
    except (RunError, WeightsError) as error:
        raise RunError(f"config.{found.key} cannot be loaded: {error}") from error
    if loaded.task != task.name:
        raise RunError(
            f"config.{found.key} is {found.source!r}, whose model {loaded.model.name} was trained for the task "
            f"{loaded.task!r}; expected one for {task.name!r}"
        )
    sized = _build(loaded.model, model, found.key)
    try:
        task.check_teacher(sized, loaded.labels, labels)
    except TaskError as error:
        raise RunError(f"config.{found.key} is {found.source!r}: {error}") from error
    return Teacher(
        sized,
        jax.device_get(resample_variables(sized, loaded.variables, loaded.model.input_spec.size)),
        loaded.labels,
        f"{loaded.model.name}, {loaded.description}",
        fingerprint(loaded.variables),
        loaded.license,
        loaded.model.input_spec.size,
    )


class _LoadedTeacher(NamedTuple):
    """A trained model as its source has it; `task` is the name of the task that it was trained for."""

    model: Model
    variables: dict[str, Any]
    labels: Labels
    task: str
    description: str
    license: str | None


def _restore(source: epath.PathLike) -> _LoadedTeacher:
    run = restore_run(source)
    averaged = "EMA " if run.weights == "ema" else ""
    description = f"the {averaged}weights of step {run.step} in {source}"
    return _LoadedTeacher(run.model, run.variables, run.labels, run.task.name, description, run.license)


def _convert(source: epath.PathLike, task: Task) -> _LoadedTeacher:
    checkpoint = read_checkpoint(source)
    resolved = resolve_model(checkpoint)
    check_unambiguous(checkpoint.origin, resolved)
    model = create_model(resolved.name, **resolved.options)
    trained_for = getattr(checkpoint.config, "task", None) or (task if task.fits(model) else find_task(model)).name
    labels = stated_labels(task, model, {"class_names": getattr(checkpoint.config, "class_names", None)})
    return _LoadedTeacher(
        model,
        from_checkpoint(model, checkpoint),
        labels,
        trained_for,
        f"the weights in {source}",
        find_license(checkpoint, model.name),
    )


def _build(theirs: Model, ours: Model, key: str) -> Model:
    """Build the model of the teacher for the image size and the dtype of the model in training.

    Raises:
        RunError: it does not take images of this size.
    """
    options = {**theirs.options, "mean": theirs.input_spec.mean, "std": theirs.input_spec.std}
    size = ours.input_spec.size
    try:
        return create_model(theirs.name, **{**options, "img_size": size, "dtype": ours.options["dtype"]})
    except ModelError as error:
        raise RunError(
            f"config.{key} is a {theirs.name}, which does not take images of {size[0]}x{size[1]} px ({error}); use "
            "another teacher, or another config.model.img_size"
        ) from error


def fingerprint(variables: dict[str, Any]) -> str:
    """Return a hash of the names, dtypes, shapes and values of variables."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(variables):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\0".encode() + array.tobytes())
    return digest.hexdigest()[:16]
