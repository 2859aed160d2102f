"""Opening the dataset of a config."""

from mambaout_jax.data import Source
from mambaout_jax.data.prepare import ensure_prepared
from mambaout_jax.run.config import RunConfig
from mambaout_jax.tasks.api import Task


def open_split(config: RunConfig, task: Task, split: str) -> Source:
    """Open a split of the dataset; `digits` and `scenes`, which require no download, are written first if missing.

    Raises:
        DataError, TaskError: the dataset or the split does not exist or is invalid.
    """
    ensure_prepared(config.data.name, config.data.data_dir)
    return task.open_source(split)
