"""The training program of a config for a dataset that may not be prepared."""

from typing import NamedTuple

import jax

from mambaout_jax.data import DataError
from mambaout_jax.models import Model
from mambaout_jax.run.config import RunConfig
from mambaout_jax.run.dataset import open_split
from mambaout_jax.run.errors import RunError
from mambaout_jax.run.teacher import load_teacher
from mambaout_jax.tasks.api import Labels, Task
from mambaout_jax.train.program import TrainingProgram, training_program


class Dataset(NamedTuple):
    """The properties of a dataset that a program depends on.

    Args:
        num_images: images of the training split.
        labels: labels of the task.
    """

    num_images: int
    labels: Labels


def dataset_of(config: RunConfig, num_images: int | None = None, labels: Labels | None = None) -> Dataset:
    """Return the properties of a config's dataset: the arguments, the prepared dataset, or the task's known size.

    Raises:
        RunError: the size is unknown.
    """
    if num_images is not None and labels is not None:
        return Dataset(num_images, labels)
    task, data = config.build_task(), config.data
    try:
        source = open_split(config, task, data.train_split)
        known = len(source), source.labels
    except DataError as error:
        known = task.known_size(data.train_split)
        if known is None:
            raise RunError(
                f"split {data.train_split!r} of {data.name} is not prepared here and its size is unknown; add "
                "--num-images and --num-classes"
            ) from error
    return Dataset(num_images or known[0], labels or known[1])


def planned_program(
    config: RunConfig, task: Task, dataset: Dataset, mesh: jax.sharding.Mesh
) -> tuple[Model, TrainingProgram]:
    """Build the model of a task and the training program of a config.

    Raises:
        RunError, ModelError: the config is invalid for the dataset or the devices, or the teacher cannot be loaded.
    """
    model = task.build_model(dataset.labels)
    teacher = load_teacher(task, model, dataset.labels)
    example = task.train_transform(model).empty()
    return model, training_program(
        config, task, model, example, dataset.num_images, mesh, None if teacher is None else teacher.model
    )
