"""Checks of plain values: config keys with their ranges, arguments, and names that should be known."""

import difflib
import math
import numbers
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple


class Key(NamedTuple):
    """A config key: its type, the values it takes and its meaning.

    Args:
        kind: of a set value.
        accept: a range "low..high" (a bound may be left out; "low..<high" excludes the upper one), or the tuple of
            accepted strings; None for any. A tuple with a range is a pair of rising numbers, without one it has
            strings.
        about: what it means, with its unit.
        optional: whether it may be unset (`config_dict.placeholder`).
    """

    kind: type
    accept: str | tuple[str, ...] | None
    about: str
    optional: bool = False


class Require:
    """Checks of arguments that raise one type of error, in one sentence.

    Args:
        error: the type.
    """

    def __init__(self, error: type[Exception]):
        self._error = error

    def counts(self, **values: Any) -> None:
        """Check that values are whole numbers of 1 and above, or lists of them."""
        for name, value in values.items():
            items = value if isinstance(value, tuple | list) else (value,)
            if not all(is_real(item) and isinstance(item, int) and item >= 1 for item in items):
                raise self._error(f"{name} is {value!r}; whole numbers of 1 and above are expected")

    def rates(self, **values: Any) -> None:
        """Check that values are probabilities below 1."""
        for name, value in values.items():
            if not is_real(value) or not 0.0 <= value < 1.0:
                raise self._error(f"{name} is {value!r}; a probability from 0 up to, not including, 1 is expected")

    def ratio(self, name: str, value: Any, width: int) -> None:
        """Check that a value is a number that leaves at least one channel of a width."""
        if not is_real(value) or not math.isfinite(value) or int(value * width) < 1:
            raise self._error(f"{name} is {value!r}; a number that leaves a channel of {width} is expected")

    def choice(self, name: str, value: Any, choices: Sequence[Any]) -> None:
        """Check that a value is one of several."""
        # To Python, 1 is in (True, False).
        if not any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in choices):
            raise self._error(f"{name} is {value!r}; expected one of {', '.join(map(str, choices))}")

    def at_least(self, name: str, value: Any, least: int) -> None:
        """Check that a value is a whole number of a size."""
        if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
            raise self._error(f"{name} is {value!r}; expected an integer of at least {least}")


def is_real(value: Any) -> bool:
    """Return whether a value is a number; to Python, True and False are."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def as_number(value: Any) -> float:
    """Return a number that was read from a file as a float; NaN for any other value."""
    return float(value) if is_real(value) else math.nan


def suggest(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean ...?" with the known name that is spelled like `name`, or nothing if there is none."""
    return "".join(f"; did you mean {other!r}?" for other in difflib.get_close_matches(name, list(known), n=1))


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known name that is spelled most like `name`."""
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]


def find_fault(name: str, key: Key, value: Any) -> str:
    """Return a sentence about what is wrong with the value of a key; empty if nothing is."""
    if value is None:
        return "" if key.optional else f"{name} is unset; {describe_values(key)} is expected"
    number = key.kind is float and isinstance(value, int)
    fits = isinstance(value, key.kind) or number
    if not fits or isinstance(value, bool) != (key.kind is bool) or not _accepts(key, value):
        return f"{name} is {value!r}; {describe_values(key)} is expected"
    return ""


def _accepts(key: Key, value: Any) -> bool:
    if key.accept is None:
        return key.kind is not tuple or all(isinstance(item, str) for item in value)
    if isinstance(key.accept, tuple):
        return value in key.accept
    low, high = key.accept.split("..")
    least, most = float(low or -math.inf), float(high.removeprefix("<") or math.inf)
    open_above = not high or high.startswith("<")

    def inside(number: Any) -> bool:
        # Comparisons are written so that NaN is outside.
        return is_real(number) and least <= number and (number < most if open_above else number <= most)

    if isinstance(value, tuple):
        return len(value) == 2 and all(map(inside, value)) and 0 < value[0] <= value[1]
    return inside(value)


def describe_values(key: Key) -> str:
    """Return the values that a key takes, in words."""
    kind = {
        bool: "True or False", int: "an integer", float: "a number", str: "a string", tuple: "a pair of rising numbers"
    }[key.kind]  # fmt: skip
    if isinstance(key.accept, tuple):
        return " or ".join(map(repr, key.accept))
    if key.accept is None:
        return "a tuple of strings" if key.kind is tuple else kind
    low, _, high = key.accept.partition("..")
    if high.startswith("<"):
        return f"{kind} of {low} up to, not including, {high[1:]}"
    return f"{kind} of {low} {f'to {high}' if high else 'or more'}"
