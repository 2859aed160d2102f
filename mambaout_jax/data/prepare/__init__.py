"""Preparation of datasets as ArrayRecord: TFDS and generated datasets, and the user's own images."""

from mambaout_jax.data.prepare.builders import ensure_prepared, prepare_dataset
from mambaout_jax.data.prepare.images import (
    Prepared,
    prepare_ade20k,
    prepare_coco,
    prepare_coco_format,
    prepare_folder,
    prepare_imagenet,
    prepare_segmentation,
)

__all__ = [
    "Prepared",
    "ensure_prepared",
    "prepare_ade20k",
    "prepare_coco",
    "prepare_coco_format",
    "prepare_dataset",
    "prepare_folder",
    "prepare_imagenet",
    "prepare_segmentation",
]
