"""Datasets, transforms and batches: everything that happens to an image before it reaches the device."""

from mambaout_jax.data.errors import DataError, WorkerDiedError
from mambaout_jax.data.eval_transform import EvalTransform
from mambaout_jax.data.pipeline import eval_batches, train_batches
from mambaout_jax.data.prepare import prepare_dataset, prepare_folder, prepare_imagenet
from mambaout_jax.data.sources import ImageSource, open_source
from mambaout_jax.data.train_transform import TrainTransform

__all__ = [
    "DataError",
    "EvalTransform",
    "ImageSource",
    "TrainTransform",
    "WorkerDiedError",
    "eval_batches",
    "open_source",
    "prepare_dataset",
    "prepare_folder",
    "prepare_imagenet",
    "train_batches",
]
