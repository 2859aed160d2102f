"""Argument types for `argparse`, and arguments shared by several commands."""

import argparse
import math
import re
from collections.abc import Callable

from mambaout_jax import supervisor
from mambaout_jax.errors import print_error
from mambaout_jax.process import own_command

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


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of a command that runs in several processes at once."""
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="join the other processes, which run the same command; on TPUs they are found automatically",
    )
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0; not needed on a TPU")
    parser.add_argument("--num-processes", type=int, metavar="N", help="number of processes; not needed on a TPU")
    parser.add_argument("--process-id", type=int, metavar="I", help="index of this process; not needed on a TPU")


def address_of(args: argparse.Namespace) -> tuple[str | None, int | None, int | None]:
    """Return the arguments of `distributed.initialize`, from those that `add_processes` declares."""
    return args.coordinator, args.num_processes, args.process_id


def supervise_if_distributed(args: argparse.Namespace) -> int | None:
    """With --distributed, run the command in a child process under a supervisor.

    Returns:
        The exit code, if the child has ended or arguments of `add_processes` do not fit together; None in a process
        that runs the command itself.
    """
    if not args.distributed:
        if all(value is None for value in address_of(args)):
            return None
        return print_error("--coordinator, --num-processes and --process-id require --distributed")
    if not supervisor.is_supervised():
        return supervisor.supervise(own_command())
    supervisor.exit_with_supervisor()
    return None


def integer(least: int, most: float = math.inf) -> Callable[[str], int]:
    """Return the argparse type of integers from `least`, which must not be negative, to `most`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            expected = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer {expected}")
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


def image_size(text: str) -> tuple[int, int]:
    """Parse SIDE or HEIGHTxWIDTH, an argument type."""
    if not (match := re.fullmatch(r"(\d+)(?:x(\d+))?", text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a side or HEIGHTxWIDTH, such as 224 or 224x320")
    height, width = match.groups()
    return int(height), int(width or height)
