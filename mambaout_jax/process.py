"""Process utilities: signals, parent processes, timeouts, locks, and atomic files and folders.

Standard library only. Functions raise the errors of the operating system; callers turn them into messages for users.
"""

import contextlib
import errno
import fcntl
import io
import os
import secrets
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import IO, Any, Generic, TypeVar

T = TypeVar("T")
Handler = Callable[[int, FrameType | None], Any]


def own_command() -> list[str]:
    """Return the arguments of Python that start this program again: its script, or -m and its module."""
    spec = sys.modules["__main__"].__spec__
    program = sys.argv[:1] if spec is None else ["-m", spec.name.removesuffix(".__main__")]
    return [*program, *sys.argv[1:]]


# Signals and other processes.


class SignalHandlers:
    """Temporarily installed signal handlers.

    Args:
        numbers: signal numbers.
        handler: called with the signal number and the frame.
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
        """Restore the previous handlers; a second call does nothing."""
        while self._former:
            signal.signal(*self._former.popitem())


@contextlib.contextmanager
def exit_on_signals(*numbers: int) -> Iterator[None]:
    """Convert signals to SystemExit with the exit code of a shell, so that `finally` blocks run."""

    def raise_exit(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    handlers = SignalHandlers(numbers, raise_exit)
    handlers.install()
    try:
        yield
    finally:
        handlers.restore()


def exit_at_once_on_stop(advice: str) -> SignalHandlers:
    """Convert the signals of `stop_signals` to exit code 75 with a sentence on stderr, while there is nothing to save.

    Returns:
        The installed handlers.
    """

    def leave(number: int, _: FrameType | None) -> None:
        with contextlib.suppress(OSError):
            os.write(2, f"error: stopped by {signal.Signals(number).name}; {advice}\n".encode())
        os._exit(os.EX_TEMPFAIL)

    handlers = SignalHandlers(stop_signals(), leave)
    handlers.install()
    return handlers


def stop_signals() -> tuple[int, ...]:
    """Return the signals that request a stop: SIGTERM, SIGINT, and SIGHUP unless `nohup` had it ignored."""
    hangup = () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)
    return (signal.SIGTERM, signal.SIGINT, *hangup)


class _Terminal(io.FileIO):
    """A terminal that may close: what is written to it afterwards is lost, without an error."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return len(data)


def tolerate_closed_terminal() -> None:
    """Keep the program alive when the terminal that it prints to closes, so that it can save its work."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream.isatty():
            terminal = io.BufferedWriter(_Terminal(stream.fileno(), "w", closefd=False))
            encoding, errors = stream.encoding, stream.errors
            setattr(sys, name, io.TextIOWrapper(terminal, encoding, errors, line_buffering=True))


def exit_with_parent(parent: int, code: int) -> None:
    """Start a thread that exits this process when its parent is gone.

    Args:
        parent: process id of the parent.
        code: exit code.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(code)

    threading.Thread(target=watch, daemon=True).start()


class BackgroundCall(Generic[T]):
    """A call in a daemon thread, which can be abandoned."""

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
        """Wait for at most `seconds`, and return whether the call has finished."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def result(self) -> T:
        """Return the result of the finished call, or raise its exception."""
        if self._errors:
            raise self._errors[0]
        return self._values[0]


def within_seconds(seconds: float, function: Callable[[], T]) -> T:
    """Call a function with a timeout, because an unreachable server would block forever.

    Raises:
        TimeoutError: the function did not return in time.
    """
    call = BackgroundCall(function)
    if not call.is_done(seconds):
        raise TimeoutError(f"no answer within {seconds:g} s")
    return call.result()


@contextlib.contextmanager
def announced(sentence: str, say: Callable[[str], Any] | None = None) -> Iterator[None]:
    """Print a sentence if the work in the body of the `with` statement takes longer than two seconds.

    Args:
        say: called with the sentence, from a thread; None to print it to stderr if that is a terminal.
    """
    timer = threading.Timer(2.0, say or _print_on_terminal, [sentence])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _print_on_terminal(sentence: str) -> None:
    if sys.stderr.isatty():
        print(sentence, file=sys.stderr, flush=True)


def lock(file: IO) -> None:
    """Lock an open file for this process; the kernel unlocks it when the file is closed or the process exits.

    Raises:
        BlockingIOError: another process holds the lock.
        OSError: the file system does not support locks.
    """
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


# Files.


def write_text_atomically(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically.

    Args:
        path: a `Path` or a local `epath.Path`.
    """
    write_bytes_atomically(path, text.encode())


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Write a file atomically.

    Args:
        path: a `Path` or a local `epath.Path`.
    """
    draft = path.parent / f".{secrets.token_hex(8)}"  # short, so that only the name of the file can be too long
    try:
        draft.write_bytes(content)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """Create a hidden folder next to `target` and remove it at the end, also after errors.

    `commit_file` and `commit_folder` move finished outputs out of it. Temporary files that libraries write next to
    their output are removed with it.
    """
    # The name comes first, so that a signal at any moment after the creation finds the folder to remove.
    folder = Path(target.parent, f".{target.name[:100]}.{secrets.token_hex(8)}")
    try:
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def commit_file(draft: Path, target: Path, *, replace: bool) -> None:
    """Move a finished file to its destination.

    Args:
        replace: replace an existing file. If False, a file created in the meantime is an error.
    """
    if not replace:
        try:
            os.link(draft, target)  # a rename would replace an existing file
        except FileExistsError:
            raise
        except OSError:
            replace = True  # the file system has no hard links; callers have checked for existing files
    if replace:
        draft.replace(target)
    sync(target.parent)


def commit_folder(draft: Path, target: Path, *, replace: bool) -> None:
    """Move a finished folder to its destination.

    Args:
        replace: replace an existing folder. It is restored if the move fails; if the process is killed in between, it
            remains in the hidden folder next to `target`. If False, a folder created in the meantime is an error.
    """
    old = draft.with_name(f"{draft.name}.old")
    if replace and target.exists():
        target.rename(old)
    try:
        draft.rename(target)  # replaces only an empty folder
    except BaseException:
        if old.exists():
            old.rename(target)
        raise
    sync(target.parent)


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_default_mode(path: Path) -> None:
    """Set the default permissions of new files, because some libraries restrict theirs to the owner."""
    probe = path.with_name(".mode")
    probe.touch()
    path.chmod(probe.stat().st_mode & 0o777)
    probe.unlink()
