"""Worker processes: how they start, which record each is reading, and how one that died is reported."""

import itertools
import multiprocessing.util
import operator
import os
import re
import signal
import tempfile
import threading

import numpy as np

from mambaout_jax.data.errors import WorkerDiedError
from mambaout_jax.process import exit_with_parent

THREADS = 2
NO_RECORD = -1


def count_cores() -> int:
    """Return the number of cores that this process may use; a job or a container may have fewer than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class WorkerStatus:
    """The record that each thread of each worker is reading, in a file that all of them map.

    A process that the kernel kills reports nothing itself; its last record is still in this file. A worker's row has
    its process id, negative once it has ended normally, and the records of its threads.
    """

    def __init__(self, num_workers: int):
        with tempfile.NamedTemporaryFile(prefix="mambaout-workers-", delete=False) as file:
            np.full((num_workers, 1 + THREADS), NO_RECORD, np.int64).tofile(file)
        self.path = file.name
        self._rows = _map(self.path)

    def explain(self, error: RuntimeError, split: str) -> WorkerDiedError:
        """Return an error that names the dead worker, the cause and the record it was reading.

        Args:
            error: what Grain raised.
            split: the split, in words.
        """
        alive = {process.pid for process in multiprocessing.active_children()}
        dead = [number for number, row in enumerate(self._rows) if row[0] > 0 and row[0] not in alive]
        records = sorted({int(record) for number in dead for record in self._rows[number, 1:] if record != NO_RECORD})
        who = " or ".join(f"data worker {number} (process {self._rows[number, 0]})" for number in dead)
        when = f"after it began record {' or '.join(map(str, records))} of" if records else "before its first record of"
        return WorkerDiedError(
            f"{who or 'a data worker'} {_describe_end(error)} {when} {split}; if the machine ran out of memory, use "
            "fewer workers"
        )

    def close(self) -> None:
        """Remove the file."""
        os.unlink(self.path)


def _map(path: str) -> np.ndarray:
    return np.memmap(path, np.int64, "r+").reshape(-1, 1 + THREADS)


def is_worker_death(error: RuntimeError) -> bool:
    """Check whether Grain raised `error` because a worker process ended, not because of an error of the program."""
    return "Worker process was terminated unexpectedly" in str(error)


def _describe_end(error: RuntimeError) -> str:
    code = int(re.search(r"exit code (-?\d+)", str(error))[1])
    return f"ended with exit code {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"


class WorkerInit:
    """The initialization of a worker process: it ignores signals to end, and ends with its parent.

    Schedulers and systems that shut down signal all processes, and the parent needs batches until it has saved.
    """

    def __init__(self, status: WorkerStatus):
        self._parent = os.getpid()
        self._path = status.path

    def __call__(self, worker_index: int, worker_count: int) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        exit_with_parent(self._parent, 0)
        row = _map(self._path)[worker_index]
        row[0] = os.getpid()
        multiprocessing.util.Finalize(None, operator.setitem, (row, 0, -os.getpid()), exitpriority=0)
        _CurrentRecord.shared = row[1:]


class _CurrentRecord(threading.local):
    """The entry of each thread of this process in its worker's row; outside a worker there is none."""

    shared: np.ndarray | None = None
    columns = itertools.count()
    column: int | None = None

    def set(self, index: int) -> None:
        if _CurrentRecord.shared is None:
            return
        if self.column is None:
            self.column = next(_CurrentRecord.columns) % THREADS
        _CurrentRecord.shared[self.column] = index


_current_record = _CurrentRecord()


def set_current_record(index: int) -> None:
    """Write the index of the record that this thread is about to read to the worker's status."""
    _current_record.set(index)
