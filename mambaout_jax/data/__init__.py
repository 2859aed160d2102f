"""Datasets, image transforms and batches: the host side of the input pipeline.

Only `prepare/` writes datasets; the code of this package that reads them does not import it.
"""

from mambaout_jax.extras import check_installed

check_installed("train", __name__)

from mambaout_jax.data.errors import DataError, WorkerDiedError
from mambaout_jax.data.eval_transform import EvalTransform
from mambaout_jax.data.pipeline import eval_batches, train_batches
from mambaout_jax.data.randaugment import RandAugment
from mambaout_jax.data.sources import Records, Source, open_records
from mambaout_jax.data.train_transform import TrainTransform

__all__ = [
    "DataError",
    "EvalTransform",
    "RandAugment",
    "Records",
    "Source",
    "TrainTransform",
    "WorkerDiedError",
    "eval_batches",
    "open_records",
    "train_batches",
]
