"""Worker processes: initialization, the record that each one is reading, and reports of crashes."""

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
from mambaout_jax.machine import describe_full_shared_memory
from mambaout_jax.process import exit_with_parent

THREADS = 2
NO_RECORD = -1


def count_cores() -> int:
    """Return the number of cores available to this process, which a job or a container may limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class WorkerStatus:
    """The record that each thread of each worker is reading, in a file mapped by all of them.

    A process killed by the kernel cannot report anything, but its last record remains in the file. The row of a worker
    has its process id, negated after a normal exit, and the records of its threads.
    """

    def __init__(self, num_workers: int):
        with tempfile.NamedTemporaryFile(prefix="mambaout-workers-", delete=False) as file:
            np.full((num_workers, 1 + THREADS), NO_RECORD, np.int64).tofile(file)
        self.path = file.name
        self._rows = _map(self.path)

    def explain(self, error: RuntimeError, split: str) -> WorkerDiedError:
        """Return an error that names the dead worker, the cause and the record that it was reading.

        Args:
            error: the error that Grain raised.
            split: description of the split.
        """
        alive = {process.pid for process in multiprocessing.active_children()}
        dead = [number for number, row in enumerate(self._rows) if row[0] > 0 and row[0] not in alive]
        records = sorted({int(record) for number in dead for record in self._rows[number, 1:] if record != NO_RECORD})
        who = " or ".join(f"data worker {number} (process {self._rows[number, 0]})" for number in dead)
        started = f"after starting to read record {' or '.join(map(str, records))}"
        when = started if records else "before reading its first record"
        code = _exit_code(error)
        how = f"exited with code {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
        return WorkerDiedError(f"{who or 'a data worker'} {how} {when} of {split}{_describe_cause(code)}")

    def close(self) -> None:
        """Delete the file."""
        os.unlink(self.path)


def _map(path: str) -> np.ndarray:
    return np.memmap(path, np.int64, "r+").reshape(-1, 1 + THREADS)


def is_worker_death(error: RuntimeError) -> bool:
    """Return whether Grain raised `error` because a worker process died, not because of an exception."""
    return "Worker process was terminated unexpectedly" in str(error)


def _exit_code(error: RuntimeError) -> int:
    return int(re.search(r"exit code (-?\d+)", str(error))[1])


def _describe_cause(code: int) -> str:
    """Return the likely cause of the end of a worker with its remedy; empty if unknown."""
    if code == -signal.SIGBUS:
        return f": {describe_full_shared_memory()}"
    if code == -signal.SIGKILL:
        return "; if the machine ran out of memory, use fewer workers (config.data.num_workers)"
    return ""


class WorkerInit:
    """The initializer of worker processes: they ignore SIGINT and SIGTERM, and exit with their parent.

    Schedulers signal all processes, but the parent needs batches until it has saved a checkpoint.
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
    """The entry of each thread in the row of its worker; unset outside of workers."""

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
    """Write the index of the record that this thread is about to read to the status of its worker."""
    _current_record.set(index)
