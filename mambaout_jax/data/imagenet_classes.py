"""The class names and the size of ImageNet (ILSVRC 2012)."""

import tensorflow_datasets as tfds

# Images of each split. Reference: Russakovsky et al., arXiv:1409.0575, table 2.
IMAGENET_SPLITS = {"train": 1_281_167, "validation": 50_000}


def imagenet_class_names() -> tuple[str, ...]:
    """Return the 1,000 WordNet ids in label order, as in TFDS's `imagenet2012`."""
    return tuple(tfds.core.tfds_path("datasets/imagenet2012/labels.txt").read_text().split())
