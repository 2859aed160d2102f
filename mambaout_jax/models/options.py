"""What an option of a model has to be, and the sentence when it is something else."""

import math
from collections.abc import Sequence
from typing import Any

from mambaout_jax.models.errors import ModelError

DTYPES = ("float32", "bfloat16")


def require_counts(**options: Any) -> None:
    """Refuse what is no whole number of 1 and above, or a list of such."""
    for option, value in options.items():
        values = value if isinstance(value, tuple | list) else (value,)
        if not all(_is_real(number) and isinstance(number, int) and number >= 1 for number in values):
            raise ModelError(f"{option} is {value!r}; whole numbers of 1 and above are expected")


def require_rates(**options: Any) -> None:
    """Refuse what is no probability below 1."""
    for option, value in options.items():
        if not _is_real(value) or not 0.0 <= value < 1.0:
            raise ModelError(f"{option} is {value!r}; a probability from 0 up to, not including, 1 is expected")


def require_ratio(option: str, ratio: Any, width: int) -> None:
    """Refuse what is no number, or leaves nothing of a width."""
    if not _is_real(ratio) or not math.isfinite(ratio) or int(ratio * width) < 1:
        raise ModelError(f"{option} is {ratio!r}; a number that leaves a channel of {width} is expected")


def require_choice(option: str, value: Any, known: Sequence[Any]) -> None:
    """Refuse what is not among the known values."""
    # To Python, 1 is in (True, False).
    if not any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in known):
        *most, last = map(str, known)
        raise ModelError(f"{option} is {value!r}; known are {', '.join(most)} and {last}")


def _is_real(value: Any) -> bool:
    """Tell numbers from the rest, of which True and False are to Python."""
    return isinstance(value, int | float) and not isinstance(value, bool)
