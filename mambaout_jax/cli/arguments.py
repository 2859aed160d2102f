"""Argument types for `argparse`, and arguments shared by several commands."""

import argparse
import math
from collections.abc import Callable

# Said by commands whose imports take more than two seconds.
LOADING = "Loading JAX and the dataset readers."


def add_plugins(parser: argparse.ArgumentParser) -> None:
    """Declare `--plugin`; its values are a list."""
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="MODULE",
        help="module with families or tasks of another package; may be repeated",
    )


def integer(least: int) -> Callable[[str], int]:
    """Return the argparse type of integers of at least `least`, which must not be negative."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least {least}")
        return int(text)

    return parse


def number(text: str) -> float:
    """Parse a finite number of at least 0.

    Raises:
        argparse.ArgumentTypeError: the text is something else.
    """
    if not 0 <= (value := _float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value


def positive_number(text: str) -> float:
    """Parse a finite number above 0.

    Raises:
        argparse.ArgumentTypeError: the text is something else.
    """
    if not 0 < (value := _float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
