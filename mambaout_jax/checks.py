"""Checks of plain values: config keys with their ranges, and names that should be known."""

import difflib
import math
from collections.abc import Iterable
from typing import Any, NamedTuple


class Key(NamedTuple):
    """A config key: its type, the values it takes and its meaning.

    Args:
        kind: of a set value.
        accept: a range "low..high" (a bound may be left out), or the tuple of accepted strings; None for any.
        about: what it means, with its unit.
        optional: whether it may be unset (`config_dict.placeholder`).
    """

    kind: type
    accept: str | tuple[str, ...] | None
    about: str
    optional: bool = False


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known name that is spelled most like `name`."""
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]


def find_fault(name: str, key: Key, value: Any) -> str:
    """Return a sentence about what is wrong with the value of a key; empty if nothing is."""
    if value is None:
        return "" if key.optional else f"{name} is unset; {describe_values(key)} is expected"
    number = key.kind is float and isinstance(value, int)
    if (not isinstance(value, key.kind) and not number) or isinstance(value, bool) or not _accepts(key, value):
        return f"{name} is {value!r}; {describe_values(key)} is expected"
    return ""


def _accepts(key: Key, value: Any) -> bool:
    if key.accept is None:
        return True
    if isinstance(key.accept, tuple):
        return value in key.accept
    low, high = (float(bound) if bound else None for bound in key.accept.split(".."))

    def inside(number: Any) -> bool:
        # Comparisons are written so that NaN is outside.
        return (
            isinstance(number, int | float)
            and (low is None or number >= low)
            and (number < math.inf if high is None else number <= high)
        )

    if isinstance(value, tuple):
        return len(value) == 2 and all(map(inside, value)) and 0 < value[0] <= value[1]
    return inside(value)


def describe_values(key: Key) -> str:
    """Return the values that a key takes, in words."""
    kind = {int: "an integer", float: "a number", str: "a string", tuple: "a pair of rising numbers"}[key.kind]
    if isinstance(key.accept, tuple):
        return " or ".join(map(repr, key.accept))
    if key.accept is None:
        return kind
    low, _, high = key.accept.partition("..")
    return f"{kind} of {low} {f'to {high}' if high else 'or more'}"
