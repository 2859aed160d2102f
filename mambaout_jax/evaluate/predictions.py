"""What a model said of each image of a split: collected batch by batch, on every host for its own rows."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

Rows = tuple[np.ndarray, ...]


class Predictions(NamedTuple):
    """Hold what a model said of each image, in the split's order: the five (or all) likeliest classes."""

    labels: np.ndarray
    classes: np.ndarray
    probabilities: np.ndarray

    def save(self, path: epath.Path) -> None:
        """Write them as an npz file."""
        with path.open("wb") as file:
            np.savez(file, **self._asdict())


def top_classes(batch: dict[str, jax.Array], logits: jax.Array) -> Rows:
    """Give mask, labels, classes and probabilities of this process's rows of a batch."""
    mask, labels, logits = map(_own_rows, (batch["mask"], batch["label"], logits))
    logits = logits.astype(np.float64)
    classes = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = np.take_along_axis(odds / odds.sum(axis=1, keepdims=True), classes, axis=1)
    return mask, labels[:, 0].astype(np.int32), classes.astype(np.int32), probabilities.astype(np.float32)


def _own_rows(x: jax.Array) -> np.ndarray:
    rows = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(rows[start]) for start in sorted(rows)])


def join_hosts(batches: Sequence[Rows]) -> Predictions:
    """Join what all processes kept of each batch, in the order of the split; every process gets the whole."""
    joined = []
    for rows in map(np.stack, zip(*batches, strict=True)):  # (batches, rows of this process, ...)
        processes = multihost_utils.process_allgather(rows)
        joined.append(np.swapaxes(processes, 0, 1).reshape(-1, *rows.shape[2:]))
    mask, *predictions = joined
    return Predictions(*(rows[mask] for rows in predictions))
