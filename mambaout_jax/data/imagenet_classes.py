"""The class names of ImageNet (ILSVRC 2012)."""

import tensorflow_datasets as tfds


def imagenet_class_names() -> tuple[str, ...]:
    """Return the 1,000 WordNet ids in label order, as in TFDS's `imagenet2012`."""
    return tuple(tfds.core.tfds_path("datasets/imagenet2012/labels.txt").read_text().split())
