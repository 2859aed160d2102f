"""The speed of an input pipeline is that of its steady flow, on a clock that the test moves."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from mambaout_jax.data import input_speed
from mambaout_jax.data.input_speed import measure_input

ROWS, BYTES = 8, 8 * (4 * 5 * 3 + 4)


@pytest.fixture
def pipeline(monkeypatch):
    """Batches that are waited for as long as the test says; times are sums of powers of two, so that they add up."""

    class Pipeline:
        now = 1024.0
        taken = 0

        def batches(self, waits):
            for wait in waits:
                self.now += wait
                self.taken += 1
                yield {"a": {"b": np.zeros((ROWS, 4, 5, 3), np.uint8)}, "skipped": np.zeros(ROWS, np.int32)}

    pipeline = Pipeline()
    monkeypatch.setattr(input_speed, "time", SimpleNamespace(monotonic=lambda: pipeline.now))
    return pipeline


def test_throughput_is_batches_over_measured_time(pipeline):
    speed = measure_input(pipeline.batches(itertools.repeat(0.25)), 10.0)
    assert speed.num_batches == 40
    assert speed.images_per_second == ROWS / 0.25
    assert speed.bytes_per_second == BYTES / 0.25


def test_waits_are_reported_as_median_and_99th_percentile(pipeline):
    waits = np.random.default_rng(0).permutation(np.arange(1, 102)) / 64
    speed = measure_input(pipeline.batches([0.0, *waits]), waits[:-1].sum() + 1 / 128)
    assert speed.num_batches == 101
    assert speed.batch_seconds == (51 / 64, 100 / 64)


def test_startup_is_reported_separately(pipeline):
    speed = measure_input(pipeline.batches(itertools.chain([4.0], itertools.repeat(0.5))), 10.0)
    assert speed.start_seconds == 4.0
    assert speed.images_per_second == ROWS / 0.5
    assert speed.batch_seconds == (0.5, 0.5)


def test_batches_read_ahead_during_startup_are_not_timed(pipeline):
    waits = itertools.chain([4.0], [0.0] * 16, itertools.repeat(0.5))
    speed = measure_input(pipeline.batches(waits), 10.0)
    assert speed.images_per_second == ROWS / 0.5
    assert speed.bytes_per_second == BYTES / 0.5
    assert speed.batch_seconds == (0.5, 0.5)


def test_the_wait_after_a_long_startup_is_limited(pipeline):
    speed = measure_input(pipeline.batches(itertools.chain([512.0], itertools.repeat(0.5))), 2.0)
    assert speed.num_batches == 4
    assert pipeline.taken == 1 + 4 + 4


@pytest.mark.parametrize(("wait", "count"), [(64.0, 3), (0.5, 3), (0.25, 4)])
def test_at_least_three_batches_are_timed(pipeline, wait, count):
    speed = measure_input(pipeline.batches(itertools.chain([0.0], itertools.repeat(wait))), 1.0)
    assert speed.num_batches == count
    assert speed.images_per_second == ROWS / wait
