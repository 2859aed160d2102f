"""Process plumbing: signals, parents, time limits, locks, and files that are there in full or not at all.

Standard library only. Errors are those of the operating system; callers say in their own words what to do about them.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import IO, Any, Generic, TypeVar

T = TypeVar("T")
Handler = Callable[[int, FrameType | None], Any]


# Signals and other processes.


class SignalHandlers:
    """Handlers of signals that are installed for a while.

    Args:
        numbers: of the signals.
        handler: called with the number and the frame.
    """

    def __init__(self, numbers: Iterable[int], handler: Handler):
        self._numbers = tuple(numbers)
        self._handler = handler
        self._former: dict[int, Any] = {}

    def install(self) -> None:
        """Install the handler."""
        for number in self._numbers:
            self._former[number] = signal.signal(number, self._handler)

    def restore(self) -> None:
        """Restore the handlers that were there before; a second call does nothing."""
        while self._former:
            signal.signal(*self._former.popitem())


@contextlib.contextmanager
def exiting_on(*numbers: int) -> Iterator[None]:
    """Turn signals into SystemExit with the exit code of a shell, so that `finally` blocks run."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    handlers = SignalHandlers(numbers, leave)
    handlers.install()
    try:
        yield
    finally:
        handlers.restore()


def exit_with_parent(parent: int, code: int) -> None:
    """Start a thread that ends this process when its parent is gone.

    Args:
        parent: its process id.
        code: the exit code.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(code)

    threading.Thread(target=watch, daemon=True).start()


class BackgroundCall(Generic[T]):
    """A call in a thread that ends with the process, so that it can be abandoned."""

    def __init__(self, function: Callable[[], T]):
        self._function = function
        self._values: list[T] = []
        self._errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._values.append(self._function())
        except BaseException as error:
            self._errors.append(error)

    def is_done(self, seconds: float) -> bool:
        """Wait for at most `seconds`, and return whether the call is over."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def result(self) -> T:
        """Return what the call returned, or raise what it raised; it has to be over."""
        if self._errors:
            raise self._errors[0]
        return self._values[0]


def within_seconds(seconds: float, function: Callable[[], T]) -> T:
    """Call a function with a time limit: an unreachable server would block forever.

    Raises:
        TimeoutError: it did not return in time.
    """
    call = BackgroundCall(function)
    if not call.is_done(seconds):
        raise TimeoutError(f"no answer within {seconds:g} s")
    return call.result()


def lock(file: IO) -> None:
    """Lock an open file for this process; the kernel unlocks it when the file is closed or the process ends.

    Raises:
        BlockingIOError: another process has locked it.
        OSError: the file system has no locks.
    """
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


# Files.


def write_text_atomically(path: Path, text: str) -> None:
    """Write a file that is there in full or not at all, in UTF-8.

    Args:
        path: a `Path`, or an `epath.Path` on this machine.
    """
    draft = path.parent / f".{path.name}.{os.getpid()}"
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


@contextlib.contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """Create a hidden folder next to `target` to write in, and remove it at the end in any case.

    What is finished is moved out of it by `commit_file` or `commit_folder`. Temporary files that libraries write next
    to their output are in it too.
    """
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name[:100]}.", dir=target.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def commit_file(draft: Path, target: Path, *, replace: bool) -> None:
    """Move a finished file to its place.

    Args:
        replace: an existing file; otherwise one that appeared in the meantime is an error.
    """
    if not replace:
        try:
            os.link(draft, target)  # a rename would replace
        except FileExistsError:
            raise
        except OSError:
            replace = True  # a file system without links; existing files were checked before
    if replace:
        draft.replace(target)
    sync(target.parent)


def commit_folder(draft: Path, target: Path, *, replace: bool) -> None:
    """Move a finished folder to its place.

    Args:
        replace: an existing folder, which comes back if that fails; a kill in between leaves it in the hidden folder
            next to the place. Otherwise one that appeared in the meantime is an error.
    """
    old = draft.with_name(f"{draft.name}.old")
    if replace and target.exists():
        target.rename(old)
    try:
        draft.rename(target)  # which replaces nothing but an empty folder
    except BaseException:
        if old.exists():
            old.rename(target)
        raise
    sync(target.parent)


def sync(path: Path) -> None:
    """Wait until a file, or the list of names of a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_default_mode(path: Path) -> None:
    """Set the permissions that any new file has; some libraries keep theirs to the owner."""
    probe = path.with_name(".mode")
    probe.touch()
    path.chmod(probe.stat().st_mode & 0o777)
    probe.unlink()
