"""Orderly termination of a command by a signal."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def orderly_ending() -> Iterator[None]:
    """Raise SystemExit on SIGTERM and SIGHUP, so that drafts are removed, with the exit code 128 + signal."""
    former = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _end(number: int, frame: object) -> None:
    raise SystemExit(128 + number)
