"""The errors that a user can fix, and how programs print them; without dependencies, for every package."""

import io
import sys
import unicodedata


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


def printable(name: str) -> str:
    """Return a name that is safe to print: control characters and bytes that are not UTF-8 are escaped.

    A carriage return in a file name wipes its line off the terminal, a bidirectional mark reorders it, and undecodable
    bytes cannot be printed. Spaces, emoji and their joiners stay.
    """
    return "".join(map(_escape, name))


def _escape(char: str) -> str:
    if "\udc80" <= char <= "\udcff":  # how Python represents a byte that is not UTF-8
        return f"\\x{ord(char) - 0xDC00:02x}"
    unsafe = unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(char) in _DIRECTIONS
    return ascii(char)[1:-1] if unsafe else char


_DIRECTIONS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def escape_unencodable_output() -> None:
    """Print characters that the encoding of stdout lacks as escapes, as Python does on stderr."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a notebook has a stream of its own
        sys.stdout.reconfigure(errors="backslashreplace")
