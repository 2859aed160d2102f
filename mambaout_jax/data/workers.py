"""Worker processes: how they start, what each is reading, and who died over what."""

import itertools
import multiprocessing.util
import operator
import os
import re
import signal
import tempfile
import threading
import time

import numpy as np

from mambaout_jax.data.errors import WorkerDiedError

THREADS = 2
NOTHING = -1


def count_cores() -> int:
    """Count the cores that this process may use, which a job or a container may have fewer of than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Board:
    """Show which record each thread of each worker is reading, in a file that all of them map.

    A process that the kernel kills leaves no last words; this is where they stand. A worker's row holds its process
    id, which becomes negative when it ends in order, and the records of its threads.
    """

    def __init__(self, num_workers: int):
        with tempfile.NamedTemporaryFile(prefix="mambaout-workers-", delete=False) as file:
            np.full((num_workers, 1 + THREADS), NOTHING, np.int64).tofile(file)
        self.path = file.name
        self._rows = _map(self.path)

    def explain(self, error: RuntimeError, split: str) -> WorkerDiedError:
        """Tell who died, of what and over which record.

        Args:
            error: what Grain raised.
            split: in words.
        """
        alive = {process.pid for process in multiprocessing.active_children()}
        dead = [number for number, row in enumerate(self._rows) if row[0] > 0 and row[0] not in alive]
        records = sorted({int(record) for number in dead for record in self._rows[number, 1:] if record != NOTHING})
        who = " or ".join(f"data worker {number} (process {self._rows[number, 0]})" for number in dead)
        when = (
            f"after it began record {' or '.join(map(str, records))} of" if records else "before it began a record of"
        )
        return WorkerDiedError(
            f"{who or 'a data worker'} {_describe_end(error)} {when} {split}; if the machine ran out of memory, use "
            "fewer workers"
        )

    def close(self) -> None:
        """Remove the file."""
        os.unlink(self.path)


def _map(path: str) -> np.ndarray:
    return np.memmap(path, np.int64, "r+").reshape(-1, 1 + THREADS)


def died(error: RuntimeError) -> bool:
    """Tell Grain's word for a process that ended by itself from an error of the program in it."""
    return "Worker process was terminated unexpectedly" in str(error)


def _describe_end(error: RuntimeError) -> str:
    code = int(re.search(r"exit code (-?\d+)", str(error))[1])
    return f"ended with exit code {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"


class WorkerStart:
    """Prepare a worker process: signals to end are its parent's to handle, and it ends with its parent.

    Schedulers and systems that shut down send them to all processes, and the parent needs batches until it has saved.
    """

    def __init__(self, board: Board):
        self._parent = os.getpid()
        self._path = board.path

    def __call__(self, worker_index: int, worker_count: int) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        threading.Thread(target=self._watch, daemon=True).start()
        row = _map(self._path)[worker_index]
        row[0] = os.getpid()
        multiprocessing.util.Finalize(None, operator.setitem, (row, 0, -os.getpid()), exitpriority=0)
        _notes.open(row[1:])

    def _watch(self) -> None:
        while os.getppid() == self._parent:
            time.sleep(1)
        os._exit(0)


class _Notes(threading.local):
    """Write down what each thread of this process reads; outside a worker, nothing."""

    shared: np.ndarray | None = None  # this worker's part of the board
    places = itertools.count()
    place: int | None = None

    def open(self, shared: np.ndarray) -> None:
        _Notes.shared = shared

    def write(self, index: int) -> None:
        if _Notes.shared is None:
            return
        if self.place is None:
            self.place = next(_Notes.places) % THREADS
        _Notes.shared[self.place] = index


_notes = _Notes()


def note(index: int) -> None:
    """Write down on the board which record this thread is about to read."""
    _notes.write(index)
