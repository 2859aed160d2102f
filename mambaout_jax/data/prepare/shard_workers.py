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

POLL_SECONDS = 0.2
GRACE_SECONDS = 2  # for a stopping worker, to clean up

_progress = _stop = None  # of a worker process


class StoppedWorkerError(Exception):
    """The end of a job because the run is stopping; no one catches it."""


def run_jobs(function: Callable[[Any, Callable[[], None]], dict], jobs: Sequence, workers: int, bar: tqdm) -> list:
    """Call `function(job, advance)` for each job, in processes if `workers` is more than one, and return the results.

    On any exception, that of a signal included, the workers leave their jobs at the next call of `advance` and exit.

    Args:
        function: a function of a module; it calls `advance()` after each unit of work.
        bar: updated with each unit of work.

    Raises:
        OSError: a worker died.
    """
    if workers == 1 or len(jobs) <= 1:
        return [function(job, bar.update) for job in jobs]
    context = multiprocessing.get_context("spawn")
    # Without locks, which a killed worker would never release; each job has its own count.
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
        raise OSError(
            "a worker process was killed, most likely because memory ran out; rerun with fewer --workers"
        ) from None
    finally:
        stop.value = True
        executor.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    """Block Ctrl-C and SIGTERM, which terminals and schedulers send to the whole group, in processes started inside.

    Blocked signals are inherited from the first instruction on; handlers would be too late during a worker's imports.
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
    """End this process when its parent is gone, or when the parent stops and this process is still waiting for work."""
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
