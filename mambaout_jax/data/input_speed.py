"""How fast the input pipeline makes batches when nothing else slows it down."""

import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mambaout_jax.data.pipeline import Batch, count_bytes

MIN_BATCHES = 3


class InputSpeed(NamedTuple):
    """The speed of an input pipeline.

    Args:
        start_seconds: until the first batch, with the start of workers; excluded from the other figures.
        images_per_second: of the batches after it.
        batch_seconds: the median and the 99th percentile of the wait for a batch.
        bytes_per_second: of all arrays of the batches.
        num_batches: how many were timed.
    """

    start_seconds: float
    images_per_second: float
    batch_seconds: tuple[float, float]
    bytes_per_second: float
    num_batches: int


def measure_input(batches: Iterator[Batch], seconds: float) -> InputSpeed:
    """Measure how fast batches come.

    The batches that were read ahead during the wait for the first one come in a burst, so timing starts only after
    another wait as long, `seconds` at most.

    Args:
        batches: endless, as `train_batches` yields them.
        seconds: how long to measure; at least three batches are taken.
    """
    started = time.monotonic()
    next(batches)
    start_seconds = time.monotonic() - started
    settled = time.monotonic() + min(start_seconds, seconds)
    while time.monotonic() < settled:
        next(batches)
    waits, began = [], time.monotonic()
    while len(waits) < MIN_BATCHES or time.monotonic() - began < seconds:
        asked = time.monotonic()
        batch = next(batches)
        waits.append(time.monotonic() - asked)
    elapsed = time.monotonic() - began
    median, late = np.percentile(waits, (50, 99))
    return InputSpeed(
        start_seconds,
        images_per_second=len(waits) * len(batch["skipped"]) / elapsed,
        batch_seconds=(float(median), float(late)),
        bytes_per_second=len(waits) * count_bytes(batch) / elapsed,
        num_batches=len(waits),
    )
