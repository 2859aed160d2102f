"""Stop at the next safe place, on all hosts the same, when a scheduler or a person says so on one of them."""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Self, TypeVar

from mambaout_jax import distributed, supervisor
from mambaout_jax.run.errors import StoppedError

T = TypeVar("T")


class StopSignals:
    """Turn SIGTERM and SIGINT into a flag while the context is open; a second signal acts as usual.

    Not so below a supervisor, which ends this process itself at a second signal: a system that shuts down sends one to
    both, and the supervisor hands its own on.
    """

    def __init__(self) -> None:
        self._ticks = distributed.StopCoordinator()
        self._former: dict[int, object] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._former[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()
        self._ticks.close()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._ticks.stop(signal.Signals(number).name)
        if supervisor.MARK not in os.environ:
            self._restore()

    def _restore(self) -> None:
        while self._former:
            signal.signal(*self._former.popitem())

    @property
    def received(self) -> str:
        """What stops the run, in words; empty as long as nothing does."""
        return self._ticks.reason

    def check(self) -> None:
        """Raise StoppedError if a signal came; to be called before everything that the hosts do together."""
        if not self._ticks.go_on():
            raise StoppedError(f"stopped by {self.received}")

    def interruptible(self, work: Callable[[], T]) -> T:
        """Run work that may take minutes without returning to Python, and leave it behind if a signal comes.

        Python handles signals between its own instructions on the main thread, so that a compilation there would
        outlast the time that a scheduler grants. The abandoned thread ends with the process.

        A process that is slower may stop here while others are past it: what they do up to the next check, they do
        without each other.
        """
        results: list[T] = []
        failures: list[BaseException] = []

        def run() -> None:
            try:
                results.append(work())
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(0.1)
            if self._ticks.over():
                raise StoppedError(f"stopped by {self.received}")
        if failures:
            raise failures[0]
        return results[0]
