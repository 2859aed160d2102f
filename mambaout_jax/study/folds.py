"""The folds of a cross-validation, as slices of a split in the syntax of TFDS."""

import itertools
import re

from mambaout_jax.run.errors import RunError
from mambaout_jax.words import count

# Group 1 is the name of a split, group 2 the start of its slice, which must be an index.
_SPLIT = re.compile(r"([\w-]+)(?:\[(\d*):-?\d*%?\])?")


def fold_splits(split: str, num_images: int, num_folds: int) -> list[tuple[str, str]]:
    """Return the training and the validation split of each fold.

    The validation splits are disjoint, cover the whole split, and differ in size by at most one image; the training
    split of a fold is the rest. The order of the records was shuffled when the dataset was prepared.

    Args:
        split: the split to divide, such as "train" or "train[:5000]".
        num_images: number of images in the split.

    Raises:
        RunError: the split cannot be divided.
    """
    match = _SPLIT.fullmatch(split)
    if not match:
        raise RunError(
            f"config.data.train_split is {split!r}; a study divides it into folds, so it must be a split or a slice "
            "that starts at an index, such as 'train' or 'train[:5000]'"
        )
    if num_images < num_folds:
        raise RunError(
            f"split {split!r} has {count(num_images, 'image')}; expected at least one per fold, {num_folds} in all"
        )
    name, start = match[1], int(match[2] or 0)
    edges = [start + fold * num_images // num_folds for fold in range(num_folds + 1)]

    def cut(low: int, high: int) -> str:
        return f"{name}[{low}:{high}]"

    return [
        ("+".join(cut(*part) for part in ((edges[0], low), (high, edges[-1])) if part[0] < part[1]), cut(low, high))
        for low, high in itertools.pairwise(edges)
    ]
