"""User errors in reading and writing weights."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from mambaout_jax.errors import UserError, reason
from mambaout_jax.machine import raise_machine_fault


class WeightsError(UserError):
    """Invalid weights or an invalid weights file or folder, described in one sentence."""


class MisfitError(WeightsError):
    """Weights whose names or shapes are not those of the model."""


class NewHeadWarning(UserWarning):
    """A last layer that was drawn at random, because the weights have none for the number of classes."""


@contextlib.contextmanager
def naming_source(origin: str) -> Iterator[None]:
    """Add the source of the weights to messages that do not start with it."""
    try:
        yield
    except WeightsError as error:
        if str(error).startswith(origin):
            raise
        raise type(error)(f"{origin}: {error}") from error


@contextlib.contextmanager
def converting_file_errors(target: Path) -> Iterator[None]:
    """Convert errors of the file system while `target` is written to WeightsError.

    Faults of the machine, such as a full disk, become MachineError.
    """
    try:
        yield
    except OSError as error:
        raise_machine_fault(error, target, to_write=True)
        raise WeightsError(f"{target} cannot be written ({reason(error)}); choose another path") from error
