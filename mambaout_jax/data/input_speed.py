"""How fast batches come, as nobody but the loop would take them."""

import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

MIN_BATCHES = 3


class InputSpeed(NamedTuple):
    """Hold what was measured.

    Args:
        start_seconds: until the first batch, workers and all; left out of the rest.
        images_per_second: of the batches after it.
        batch_seconds: the median and the 99th percentile of the time that a batch was waited for.
        bytes_per_second: of pixels.
        num_batches: how many were timed.
    """

    start_seconds: float
    images_per_second: float
    batch_seconds: tuple[float, float]
    bytes_per_second: float
    num_batches: int


def measure_input(batches: Iterator[dict[str, np.ndarray]], seconds: float) -> InputSpeed:
    """Take batches as fast as they come.

    What was read ahead while the first batch was waited for comes in a burst, so that batches are timed only after
    as long a time as it took, `seconds` at most.

    Args:
        batches: endless, with "image" (b, h, w, c) in each.
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
        images_per_second=len(waits) * len(batch["image"]) / elapsed,
        batch_seconds=(float(median), float(late)),
        bytes_per_second=len(waits) * batch["image"].nbytes / elapsed,
        num_batches=len(waits),
    )
