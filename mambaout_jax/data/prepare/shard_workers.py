"""Jobs in worker processes that exit with their parent."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from tqdm import tqdm

from mambaout_jax.machine import MachineError

POLL_SECONDS = 0.2
GRACE_SECONDS = 2  # for stopping workers to clean up

_progress = _stop = None  # set in worker processes


class StoppedWorkerError(Exception):
    """The exception that ends a job because the run is stopping; it is never caught."""


def run_jobs(function: Callable[[Any, Callable[[], None]], dict], jobs: Sequence, workers: int, bar: tqdm) -> list:
    """Return `function(job, advance)` for each job, computed in processes if `workers` is more than one.

    On any exception, including those of signals, the workers abandon their jobs at the next call of `advance` and exit.

    Args:
        function: module-level function, which calls `advance()` after each unit of work.
        bar: progress bar, updated after each unit of work.

    Raises:
        MachineError: a worker died.
    """
    if workers == 1 or len(jobs) <= 1:
        return [function(job, bar.update) for job in jobs]
    context = multiprocessing.get_context("spawn")
    # Without locks, which a killed worker would never release; each job has its own counter.
    progress, stop = context.RawArray("q", len(jobs)), context.RawValue("b", False)
    executor = concurrent.futures.ProcessPoolExecutor(
        min(workers, len(jobs)), mp_context=context, initializer=_start, initargs=(progress, stop)
    )
    shown = 0
    try:
        with _blocked_signals():
            futures = [executor.submit(_call, function, job, index) for index, job in enumerate(jobs)]
        pending = set(futures)
        while pending:
            done, pending = concurrent.futures.wait(pending, POLL_SECONDS, concurrent.futures.FIRST_EXCEPTION)
            for future in done:
                future.result()
            count = sum(progress)
            bar.update(count - shown)
            shown = count
        return [future.result() for future in futures]
    except BrokenProcessPool:
        raise MachineError(
            "a worker process was killed, probably because the machine ran out of memory; rerun with fewer --workers"
        ) from None
    finally:
        stop.value = True
        executor.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    """Block SIGINT and SIGTERM, which terminals and schedulers send to the whole group, in processes started inside.

    Blocked signals are inherited from the start; handlers would be installed too late, after the imports of a worker.
    """
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _start(progress, stop) -> None:
    global _progress, _stop
    _progress, _stop = progress, stop
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Exit when the parent is gone, or when it stops and this process, after a grace period, is waiting for work."""
    parent = multiprocessing.parent_process()
    while parent.is_alive() and not _stop.value:
        parent.join(POLL_SECONDS)
    if _stop.value:
        time.sleep(GRACE_SECONDS)
    os._exit(1)


def _call(function: Callable, job: Any, index: int) -> dict:
    def advance() -> None:
        _progress[index] += 1
        if _stop.value:
            raise StoppedWorkerError

    return function(job, advance)
