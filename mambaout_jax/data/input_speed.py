"""Throughput of the input pipeline alone."""

import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mambaout_jax.data.pipeline import Batch, count_bytes

MIN_BATCHES = 3


class InputSpeed(NamedTuple):
    """The throughput of an input pipeline.

    Args:
        start_seconds: time to the first batch, including the start of workers; not part of the other figures.
        images_per_second: throughput in images.
        batch_seconds: median and 99th percentile of the wait for a batch.
        bytes_per_second: throughput in bytes of all arrays.
        num_batches: number of timed batches.
    """

    start_seconds: float
    images_per_second: float
    batch_seconds: tuple[float, float]
    bytes_per_second: float
    num_batches: int


def measure_input(batches: Iterator[Batch], seconds: float) -> InputSpeed:
    """Measure the throughput of an iterator of batches.

    Batches that were read ahead during the wait for the first one arrive in a burst, so timing starts only after
    another wait of the same length, at most `seconds`.

    Args:
        batches: endless iterator, as from `train_batches`.
        seconds: duration of the measurement; at least three batches are timed.
    """
    started = time.monotonic()
    next(batches)
    start_seconds = time.monotonic() - started
    settled = time.monotonic() + min(start_seconds, seconds)
    while time.monotonic() < settled:
        next(batches)
    waits, began = [], time.monotonic()
    while len(waits) < MIN_BATCHES or time.monotonic() - began < seconds:
        requested = time.monotonic()
        batch = next(batches)
        waits.append(time.monotonic() - requested)
    elapsed = time.monotonic() - began
    median, tail = np.percentile(waits, (50, 99))
    return InputSpeed(
        start_seconds,
        images_per_second=len(waits) * len(batch["skipped"]) / elapsed,
        batch_seconds=(float(median), float(tail)),
        bytes_per_second=len(waits) * count_bytes(batch) / elapsed,
        num_batches=len(waits),
    )
