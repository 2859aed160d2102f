"""Datasets, transforms and batches: everything that happens to an image before it reaches the device."""

from mambaout_jax.data.errors import DataError
from mambaout_jax.data.pipeline import eval_batches, train_batches
from mambaout_jax.data.prepare import prepare_dataset
from mambaout_jax.data.sources import ImageSource, open_source
from mambaout_jax.data.transforms import EvalTransform, TrainTransform

__all__ = [
    "DataError",
    "EvalTransform",
    "ImageSource",
    "TrainTransform",
    "eval_batches",
    "open_source",
    "prepare_dataset",
    "train_batches",
]
