"""Stopping all hosts at the same point after a signal to one of them."""

import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from types import FrameType
from typing import Self, TypeVar

from tqdm import tqdm

from mambaout_jax import distributed, supervisor
from mambaout_jax.process import BackgroundCall, SignalHandlers, announced, stop_signals
from mambaout_jax.run.errors import StoppedError

T = TypeVar("T")


class StopSignals:
    """A context in which SIGTERM, SIGINT and SIGHUP request a stop; a second signal has its previous effect.

    SIGHUP means that the terminal is closing. It is ignored where it was, as under `nohup`.

    Under a supervisor a second signal has no effect, because a system shutdown signals both processes and the
    supervisor forwards its own signal; it kills this process if it receives two.
    """

    def __init__(self) -> None:
        self._coordinator = distributed.StopCoordinator()
        self._handlers = SignalHandlers(stop_signals(), self._receive)

    def __enter__(self) -> Self:
        self._handlers.install()
        return self

    def __exit__(self, *_: object) -> None:
        self._handlers.restore()
        self._coordinator.close()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._coordinator.request_stop(signal.Signals(number).name)
        if not supervisor.is_supervised():
            self._handlers.restore()

    @property
    def received(self) -> str:
        """The reason for the stop, or an empty string if none was requested."""
        return self._coordinator.reason

    def check(self) -> None:
        """Raise StoppedError after a stop request; call it before each collective operation."""
        if not self._coordinator.should_continue():
            raise StoppedError(f"stopped by {self.received}")

    def interruptible(self, work: Callable[[], T], sentence: str) -> T:
        """Run `work` in a thread, and abandon it after a stop request; for calls that spend minutes outside of Python.

        Python handles signals between its own instructions on the main thread, so a compilation there could outlast
        the grace period of a scheduler. The abandoned thread ends with the process.

        A slower process may stop here when others have passed this point, so they must not depend on it until their
        next check.

        Args:
            sentence: description of the work, printed by the first process if it takes longer than two seconds.
        """
        call = BackgroundCall(work)
        with announced(sentence, partial(tqdm.write, file=sys.stderr)) if distributed.is_first() else nullcontext():
            while not call.is_done(0.1):
                if self._coordinator.finished():
                    raise StoppedError(f"stopped by {self.received}")
        return call.result()
