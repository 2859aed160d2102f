"""Checks of the options of a model."""

import math
from collections.abc import Sequence
from typing import Any

from mambaout_jax.models.errors import ModelError

DTYPES = ("float32", "bfloat16")


def require_counts(**options: Any) -> None:
    """Check that options are whole numbers of 1 and above, or lists of them."""
    for option, value in options.items():
        values = value if isinstance(value, tuple | list) else (value,)
        if not all(_is_real(number) and isinstance(number, int) and number >= 1 for number in values):
            raise ModelError(f"{option} is {value!r}; whole numbers of 1 and above are expected")


def require_rates(**options: Any) -> None:
    """Check that options are probabilities below 1."""
    for option, value in options.items():
        if not _is_real(value) or not 0.0 <= value < 1.0:
            raise ModelError(f"{option} is {value!r}; a probability from 0 up to, not including, 1 is expected")


def require_ratio(option: str, ratio: Any, width: int) -> None:
    """Check that an option is a number that leaves at least one channel of a width."""
    if not _is_real(ratio) or not math.isfinite(ratio) or int(ratio * width) < 1:
        raise ModelError(f"{option} is {ratio!r}; a number that leaves a channel of {width} is expected")


def require_choice(option: str, value: Any, known: Sequence[Any]) -> None:
    """Check that an option has one of the known values."""
    # To Python, 1 is in (True, False).
    if not any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in known):
        *most, last = map(str, known)
        raise ModelError(f"{option} is {value!r}; known are {', '.join(most)} and {last}")


def _is_real(value: Any) -> bool:
    """Return whether a value is a number; to Python, True and False are."""
    return isinstance(value, int | float) and not isinstance(value, bool)
