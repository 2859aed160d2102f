"""Cut a split into the folds of a cross-validation, as slices that TFDS understands."""

import itertools
import re

from mambaout_jax.run.errors import RunError

# A split's name, alone or with a slice whose start is an index: 1 the name, 2 the start.
_SPLIT = re.compile(r"([\w-]+)(?:\[(\d*):-?\d*%?\])?")


def fold_splits(split: str, num_images: int, num_folds: int) -> list[tuple[str, str]]:
    """Give the training and the validation split of each fold.

    The validation splits are disjoint, cover everything and have equally many images, or one more; what is trained on
    is all the rest. Records lie in an order that was shuffled when the dataset was prepared.

    Args:
        split: what is cut, such as "train" or "train[:5000]".
        num_images: that it has.

    Raises:
        RunError: it cannot be cut.
    """
    match = _SPLIT.fullmatch(split)
    if not match:
        raise RunError(
            f"config.data.train_split is {split!r}; a study cuts it into folds itself, so that a split's name or its "
            "first part is expected, such as 'train' or 'train[:5000]'"
        )
    if num_images < num_folds:
        raise RunError(
            f"split {split!r} has {num_images} images; at least one for each of {num_folds} folds is expected"
        )
    name, start = match[1], int(match[2] or 0)
    edges = [start + fold * num_images // num_folds for fold in range(num_folds + 1)]

    def cut(low: int, high: int) -> str:
        return f"{name}[{low}:{high}]"

    return [
        ("+".join(cut(*part) for part in ((edges[0], low), (high, edges[-1])) if part[0] < part[1]), cut(low, high))
        for low, high in itertools.pairwise(edges)
    ]
