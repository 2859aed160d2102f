"""Write datasets as ArrayRecord: those of TFDS, ImageNet, and folders of one's own images."""

from mambaout_jax.data.prepare.builders import prepare_dataset
from mambaout_jax.data.prepare.images import Prepared, prepare_folder, prepare_imagenet

__all__ = ["Prepared", "prepare_dataset", "prepare_folder", "prepare_imagenet"]
