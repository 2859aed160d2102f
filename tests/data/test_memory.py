"""Memory does not grow with the length of a run."""

import contextlib
import itertools
import multiprocessing
import os
from pathlib import Path

import pytest

from mambaout_jax.data import TrainTransform, train_batches
from mambaout_jax.tasks.classification.transforms import TrainExample
from tests.data.photos import NumberedSource


def resident_bytes() -> int:
    """Return the memory of this process, its workers and shared memory."""
    processes = ("self", *(worker.pid for worker in multiprocessing.active_children()))
    pages = sum(int(Path(f"/proc/{process}/statm").read_text().split()[1]) for process in processes)
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(map(size, Path("/dev/shm").glob("psm_*")))


def size(segment: Path) -> int:
    try:
        return segment.stat().st_size
    except FileNotFoundError:  # batches of this and of other tests appear and disappear meanwhile
        return 0


@pytest.mark.nightly
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("workers", [0, 1])
def test_memory_is_constant_over_ten_thousand_batches(workers):
    batches = train_batches(
        NumberedSource(512),
        TrainExample(TrainTransform((32, 32), flip=0.5)),
        batch_size=2,
        steps_per_epoch=64,
        seed=0,
        num_workers=workers,
    )
    held = []
    with contextlib.closing(batches):
        for count in (2_000, 8_000):
            for _ in itertools.islice(batches, count):
                pass
            held.append(resident_bytes())
    # 8,000 batches have 47 MiB.
    assert held[1] - held[0] < 12 * 2**20
