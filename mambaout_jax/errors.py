"""The errors that a user can fix, and how programs print them; without dependencies, for every package."""

import functools
import io
import os
import re
import sys
from typing import TextIO


class UserError(ValueError):
    """An error that a user can fix, described in one sentence.

    The programs print the sentence without a traceback and exit with code 2. Each package has a subclass; a family or
    task of another package may derive its own.
    """


def is_user_error(error: Exception) -> bool:
    """Return whether an error is a user error or a missing device, which is printed without a traceback."""
    return isinstance(error, UserError) or str(error).startswith("Unable to initialize backend")


def reason(error: Exception) -> str:
    """Return what an exception of the standard library says, as a part of a sentence."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, KeyError):
        return f"{error.args[0]!r} is missing"
    return str(error) or type(error).__name__


def print_error(sentence: object, code: int = 2) -> int:
    """Print an error to stderr in one line, and return the exit code."""
    print(f"error: {printable(str(sentence))}", file=sys.stderr)
    return code


# Control characters, separators of lines and paragraphs, marks that set the direction of text, and surrogates.
_UNSAFE = "\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff"


def printable(name: str) -> str:
    """Return a name that is safe to print: control characters and bytes that are not UTF-8 are escaped.

    A carriage return in a file name wipes its line off the terminal, a bidirectional mark reorders it, and undecodable
    bytes cannot be printed. Spaces, emoji and their joiners stay.
    """
    return re.sub(f"[{_UNSAFE}]", _escape, name)


def _escape(found: re.Match[str]) -> str:
    char = found[0]
    if "\udc80" <= char <= "\udcff":  # how Python represents a byte that is not UTF-8
        return f"\\x{ord(char) - 0xDC00:02x}"
    return ascii(char)[1:-1]


def escape_output() -> None:
    """Escape what is not safe to print in all that this process prints, logs and warns of, and in tracebacks.

    Line breaks and tabs stay, and the control characters with which a progress bar redraws its line. Characters that
    the encoding of a stream lacks are escaped too.
    """
    os.environ["PYTHON_COLORS"] = "0"  # Python 3.13 colors tracebacks, with control characters
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a notebook has streams of its own
            stream.reconfigure(errors="backslashreplace")
            # The method and not the stream is replaced, because loggers keep the stream.
            stream.write = _SafeWriter(stream)


class _SafeWriter:
    """The method `write` of a text stream, with control characters escaped."""

    def __init__(self, stream: TextIO):
        self._write = functools.partial(type(stream).write, stream)
        self._first = ""  # the first character of the current line

    def __call__(self, text: str) -> int:
        # A bar starts its line with a carriage return. Nested ones move up from such a line.
        is_bar = self._first == "\r"
        if is_bar and re.fullmatch(r"(\x1b\[A)+", text):
            kept = len(text)
        else:
            kept = int(text.startswith("\r") and (is_bar or not self._first))
        self._write(text[:kept] + re.sub(rf"(?![\t\n])[{_UNSAFE}]", _escape, text[kept:]))
        self._first = (self._first + text).rpartition("\n")[2][:1]
        return len(text)
