"""End a command in order when it is told to end."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def orderly_ending() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the program, so that drafts are removed, with the exit code that a shell gives."""
    former = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _end(number: int, frame: object) -> None:
    raise SystemExit(128 + number)
