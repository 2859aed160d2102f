"""Datasets, image transforms and batches: everything on the host between a prepared dataset and the device.

Nothing in this package except `prepare/` writes datasets, and nothing outside `prepare/` imports it.
"""

from mambaout_jax.extras import check_installed

check_installed("train", __name__)

from mambaout_jax.data.errors import DataError, WorkerDiedError
from mambaout_jax.data.eval_transform import EvalTransform
from mambaout_jax.data.pipeline import eval_batches, train_batches
from mambaout_jax.data.sources import Records, Source, open_records
from mambaout_jax.data.train_transform import TrainTransform

__all__ = [
    "DataError",
    "EvalTransform",
    "Records",
    "Source",
    "TrainTransform",
    "WorkerDiedError",
    "eval_batches",
    "open_records",
    "train_batches",
]
