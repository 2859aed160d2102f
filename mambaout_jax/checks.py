"""Validation of config keys, model options and arguments, and suggestions for misspelled names."""

import ast
import difflib
import math
import numbers
import reprlib
import types
import typing
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple


class ConfigKey(NamedTuple):
    """A config key or an option of a model.

    Args:
        kind: type of the value: bool, int, float (which takes integers too), str, a tuple type of these, or a union of
            them. A key whose union has None may be unset. `tuple[float, float]` is a pair with 0 < low <= high.
        accept: range of every number, "low..high", where a bound may be left out and ">low" and "<high" exclude it; or
            the accepted strings; None for any value but an empty string.
        default: default value; None for a key that is required, unless `kind` includes None.
        help: meaning, with the unit.
        changeable: whether a resumed run may change it, because a training step computes the same for every value.
        inference: what about an option of a model affects its parameters or its logits at inference: its "value", its
            "presence" (whether it is None), or "none".
    """

    kind: Any
    accept: str | tuple[str, ...] | None
    default: Any
    help: str
    changeable: bool = False
    inference: str = "value"

    @property
    def kinds(self) -> tuple[Any, ...]:
        """Return the types of a set value."""
        union = typing.get_args(self.kind) if isinstance(self.kind, types.UnionType) else (self.kind,)
        return tuple(kind for kind in union if kind is not types.NoneType)

    @property
    def optional(self) -> bool:
        """Return whether the key may be unset."""
        return types.NoneType in typing.get_args(self.kind)


class Require:
    """Checks of arguments that raise one type of error, in one sentence.

    Args:
        error: the type.
    """

    def __init__(self, error: type[Exception]):
        self._error = error

    def counts(self, **values: Any) -> None:
        """Check that values are positive integers."""
        for name, value in values.items():
            if not is_real(value) or not isinstance(value, int) or value < 1:
                raise self._error(f"{name} is {value!r}; expected a positive integer")

    def ratio(self, name: str, value: Any, width: int) -> None:
        """Check that a value is a number whose product with `width` is at least one channel."""
        if not is_real(value) or not math.isfinite(value) or int(value * width) < 1:
            raise self._error(f"{name} is {value!r}; expected a finite number of at least 1/{width}")

    def choice(self, name: str, value: Any, choices: Sequence[Any]) -> None:
        """Check that a value is one of `choices`."""
        # To Python, 1 is in (True, False).
        if not any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in choices):
            raise self._error(f"{name} is {value!r}; expected one of {', '.join(map(str, choices))}")

    def at_least(self, name: str, value: Any, least: int) -> None:
        """Check that a value is an integer of at least `least`."""
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


def expected_one_of(name: str, known: Iterable[str]) -> str:
    """Return the end of a message with all known names, after what `suggest` returns for a name."""
    known = list(known)
    near, names = suggest(name, known), ", ".join(known)
    return f"{near} Expected one of {names}" if near else f"; expected one of {names}"


def nearest_names(name: str, known: Iterable[str], limit: int = 1) -> list[str]:
    """Return the known names that are spelled most like `name`: similar ones, or the nearest one if none is."""
    known = list(known)
    similar = difflib.get_close_matches(name, known, n=limit, cutoff=0.75)
    return similar or difflib.get_close_matches(name, known, n=1, cutoff=0.0)


def parse_text(key: ConfigKey, text: str) -> Any:
    """Parse the value of a key from a command line; text that cannot be parsed is returned unchanged.

    Numbers and tuples are written as in Python, True and False in any case, and None unsets a key. Tuples may lack
    parentheses, tuples of strings also quotes: tensorboard,csv.
    """
    if text == "None":
        return None
    if str in key.kinds:
        return text
    value = parse_literal(text)
    if tuple[str, ...] in key.kinds and isinstance(value, str):
        return tuple(word.strip() for word in value.split(",") if word.strip())
    return tuple(value) if isinstance(value, list) else value


def parse_literal(text: str) -> Any:
    """Parse a Python literal, true and false in any case; other text is returned unchanged."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return {"true": True, "false": False}.get(text.lower(), text)


# Programs compute with int32 and float32.
MAX_INTEGER = 2**31 - 1
_LARGEST = {int: MAX_INTEGER, float: 3.4028234663852886e38}


def find_fault(name: str, key: ConfigKey, value: Any) -> str:
    """Return a sentence about what is wrong with the value of a key; empty if nothing is."""
    if value is None:
        if key.optional:
            return ""
        if name.startswith("config."):
            return f"{name} is unset; set it, for example with --{name}=VALUE ({describe_values(key)})"
        return f"{name} is unset; expected {describe_values(key)}"
    if any(_fits(kind, key.accept, value) for kind in key.kinds):
        return ""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) != math.inf
    too_large = is_number and any(kind in _LARGEST and _overflows(kind, key.accept, value) for kind in key.kinds)
    limit = f" that fits into {'int32' if int in key.kinds else 'float32'}" if too_large else ""
    return f"{name} is {shorten(value)}; expected {describe_values(key)}{limit}"


def shorten(value: Any) -> str:
    """Return the representation of a value for a message, cut if it is long."""
    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = shortener.maxlong = 60
    shortener.maxtuple = 8
    return shortener.repr(value)


def _fits(kind: Any, accept: str | tuple[str, ...] | None, value: Any) -> bool:
    if typing.get_origin(kind) is tuple:
        item, last = typing.get_args(kind)
        if not isinstance(value, tuple | list) or not all(_fits(item, accept, each) for each in value):
            return False
        if last is ...:
            return item is str or len(value) > 0
        return len(value) == 2 and (item is not float or 0 < value[0] <= value[1])
    if kind is str:
        return isinstance(value, str) and (value in accept if isinstance(accept, tuple) else value != "")
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if not isinstance(value, int if kind is int else int | float):
        return False
    return not _overflows(kind, accept, value) and _inside(accept or "..", value)


def _overflows(kind: type, accept: str | None, value: float) -> bool:
    """Return whether a number does not fit into a program, for keys without an upper bound of their own."""
    return (accept or "..").endswith("..") and abs(value) > _LARGEST[kind]


def _inside(bounds: str, value: float) -> bool:
    low, high = bounds.split("..")
    least, most = float(low.removeprefix(">") or -math.inf), float(high.removeprefix("<") or math.inf)
    # Comparisons are written so that NaN is outside.
    above = value > least if low.startswith(">") or not low else value >= least
    return above and (value < most if high.startswith("<") or not high else value <= most)


_SINGULAR = {bool: "True or False", int: "an integer", float: "a number", str: "a non-empty string"}
_PLURAL = {int: "integers", float: "numbers", str: "non-empty strings"}


def describe_values(key: ConfigKey) -> str:
    """Return the values that a key takes, in words."""
    if isinstance(key.accept, tuple):
        in_tuple = any(typing.get_origin(kind) is tuple for kind in key.kinds)
        choices = map(repr, key.accept)
        words = f"a tuple with any of {', '.join(choices)}" if in_tuple else " or ".join(choices)
    else:
        words = " or ".join(map(_describe_kind, key.kinds)) + _describe_range(key.accept or "..")
    return f"{words}, or None" if key.optional else words


def _describe_kind(kind: Any) -> str:
    if typing.get_origin(kind) is not tuple:
        return _SINGULAR[kind]
    item, last = typing.get_args(kind)
    if last is ...:
        return f"a tuple of {_PLURAL[item]}" if item is str else f"a non-empty tuple of {_PLURAL[item]}"
    return "a pair of numbers, 0 < low <= high," if item is float else f"a pair of {_PLURAL[item]}"


def _describe_range(bounds: str) -> str:
    low, high = bounds.split("..")
    if low.startswith(">"):
        lower, upper = f"above {low[1:]}", f" and at most {high}"
    else:
        lower, upper = f"from {low}", f" to {high}"
    if high.startswith("<"):
        upper = f" to below {high[1:]}"
    if not high:
        return "" if not low else f" {lower}" if low.startswith(">") else f" of at least {low}"
    return f" {lower}{upper}"
