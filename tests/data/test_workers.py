"""Worker processes that die are named, with what they were reading, and never leave the run waiting."""

import itertools
import multiprocessing
import os
import signal

import pytest

from mambaout_jax.data import EvalTransform, TrainTransform, WorkerDiedError, eval_batches, train_batches
from mambaout_jax.tasks.classification.transforms import EvalExample, TrainExample
from tests.data.photos import NumberedSource

DEADLY = 11
EVAL = EvalExample(EvalTransform((8, 8), channels=1), max_labels=1)


class DeadlySource(NumberedSource):
    """End the process that reads one of the records, as the kernel does when memory runs out, or with an exit code."""

    def __init__(self, length: int, end: str):
        super().__init__(length)
        self.end = end

    def __getitem__(self, index: int) -> dict:
        if index == DEADLY:
            if self.end == "exit":
                os._exit(4)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


@pytest.mark.run
@pytest.mark.parametrize(("end", "words"), [("kill", "was killed by SIGKILL"), ("exit", "exited with code 4")])
def test_a_dead_worker_ends_the_run_with_its_number_and_the_record(end, words):
    batches = train_batches(
        DeadlySource(64, end),
        TrainExample(TrainTransform((8, 8), channels=1)),
        batch_size=2,
        steps_per_epoch=32,
        seed=0,
        num_workers=2,
    )
    with pytest.raises(WorkerDiedError, match=words) as raised:
        list(itertools.islice(batches, 32))
    assert (
        f"{DEADLY}" in str(raised.value).partition("after starting to read record")[2].partition(" of split 'train'")[0]
    )
    assert "data worker" in str(raised.value)
    assert raised.value.__suppress_context__
    assert not multiprocessing.active_children()


@pytest.mark.run
def test_a_worker_killed_from_outside_is_named():
    batches = eval_batches(NumberedSource(5000), EVAL, batch_size=2, num_workers=2)
    for _ in range(4):  # from either worker, which is sure to be at work then
        next(batches)
    victim = multiprocessing.active_children()[0].pid
    os.kill(victim, signal.SIGKILL)
    with pytest.raises(WorkerDiedError, match=rf"data worker \d \(process {victim}\) was killed by SIGKILL"):
        list(batches)


@pytest.mark.run
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_ends_no_worker(number):
    batches = eval_batches(NumberedSource(500), EVAL, batch_size=2, num_workers=1)
    next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, number)
    assert len(list(batches)) == 249
