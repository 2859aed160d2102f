"""The training batches of a config."""

from collections.abc import Iterator
from typing import Any

import jax

from mambaout_jax.data import Source, train_batches
from mambaout_jax.models import Model
from mambaout_jax.run.config import RunConfig
from mambaout_jax.run.dataset import open_split
from mambaout_jax.run.errors import RunError
from mambaout_jax.tasks.api import Batch, Task


def open_batches(config: RunConfig) -> Iterator[Batch]:
    """Open the training split of a config and return an infinite iterator over its batches from step 0.

    Raises:
        RunError, TaskError, DataError, ModelError: the config, the dataset or the model is invalid.
    """
    task = config.build_task()
    source = open_split(config, task, config.data.train_split)
    return training_batches(config, task, task.build_model(source.labels), source)


def training_batches(
    config: RunConfig, task: Task, model: Model, source: Source, start_step: int = 0
) -> Iterator[dict[str, Any]]:
    """Return an infinite iterator over the batches of a run from `start_step`.

    Raises:
        RunError, DataError: the config or the dataset is invalid.
    """
    return train_batches(
        source,
        task.train_transform(model, source),
        batch_size=config.batch_size,
        steps_per_epoch=steps_per_epoch(config, len(source)),
        seed=config.seed,
        repeated_aug=config.data.repeated_aug,
        start_step=start_step,
        num_workers=config.data.num_workers,
        host_index=jax.process_index(),
        host_count=jax.process_count(),
        on_bad_record=config.data.on_bad_record,
    )


def steps_per_epoch(config: RunConfig, num_images: int) -> int:
    """Return the number of full batches per epoch.

    Raises:
        RunError: the dataset is smaller than a batch.
    """
    if config.batch_size > num_images:
        size, group = 2 ** (num_images.bit_length() - 1), config.build_task().row_group()
        smaller = f" --config.{group.key}={size}" if group.size > size else ""
        raise RunError(
            f"config.batch_size is {config.batch_size}; expected at most {num_images}, the number of training images: "
            f"add --config.batch_size={size}{smaller}"
        )
    return num_images // config.batch_size
