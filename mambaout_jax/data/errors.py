"""Errors in datasets and the input pipeline."""

from mambaout_jax.errors import UserError
from mambaout_jax.machine import MachineError


class DataError(UserError):
    """An invalid dataset, record, image or argument, described in one sentence."""


class WorkerDiedError(MachineError):
    """A worker process that was killed or exited, described in one sentence with the record that it was reading."""
