"""Run jobs in processes that end with the one that started them."""

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
GRACE_SECONDS = 2  # for a worker that is told to stop, to clean up

_ticks = _stop = None  # of a worker process


class StoppedWorkerError(Exception):
    """Report to nobody that a job was left unfinished."""


def run_jobs(function: Callable[[Any, Callable[[], None]], dict], jobs: Sequence, workers: int, bar: tqdm) -> list:
    """Call `function(job, tick)` for each job, in processes if `workers` is more than one; give the results in order.

    On any exception, that of a signal included, the workers leave their jobs at the next tick and end.

    Args:
        function: a function of a module; it calls `tick` whenever one unit of work is done.
        bar: moved on at each tick.

    Raises:
        OSError: a worker died.
    """
    if workers == 1 or len(jobs) <= 1:
        return [function(job, bar.update) for job in jobs]
    context = multiprocessing.get_context("spawn")
    # Without locks, which a worker that is killed would hold for ever; each job has a count of its own.
    ticks, stop = context.RawArray("q", len(jobs)), context.RawValue("b", False)
    executor = concurrent.futures.ProcessPoolExecutor(
        min(workers, len(jobs)), mp_context=context, initializer=_start, initargs=(ticks, stop)
    )
    shown = 0
    try:
        with _signals_held():
            futures = [executor.submit(_call, function, job, index) for index, job in enumerate(jobs)]
        pending = set(futures)
        while pending:
            done, pending = concurrent.futures.wait(pending, POLL_SECONDS, concurrent.futures.FIRST_EXCEPTION)
            for future in done:
                future.result()
            count = sum(ticks)
            bar.update(count - shown)
            shown = count
        return [future.result() for future in futures]
    except BrokenProcessPool:
        raise OSError(
            "a worker process was killed, most likely for want of memory; run again with fewer --workers"
        ) from None
    finally:
        stop.value = True
        executor.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Start processes that never see Ctrl-C or SIGTERM, which terminals and schedulers send to the whole group.

    Blocked signals are inherited, from the first instruction on: handlers would be too late for a worker that is
    still importing.
    """
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _start(ticks, stop) -> None:
    global _ticks, _stop
    _ticks, _stop = ticks, stop
    threading.Thread(target=_end_in_time, daemon=True).start()


def _end_in_time() -> None:
    """End this process when the one that started it is gone, or says stop and this one still waits for work."""
    parent = multiprocessing.parent_process()
    while parent.is_alive() and not _stop.value:
        parent.join(POLL_SECONDS)
    if _stop.value:
        time.sleep(GRACE_SECONDS)
    os._exit(1)


def _call(function: Callable, job: Any, index: int) -> dict:
    def tick() -> None:
        _ticks[index] += 1
        if _stop.value:
            raise StoppedWorkerError

    return function(job, tick)
