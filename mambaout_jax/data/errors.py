"""Errors in datasets and the input pipeline."""

from mambaout_jax.errors import UserError


class DataError(UserError):
    """An invalid dataset, record, image or argument, described in one sentence."""


class WorkerDiedError(RuntimeError):
    """A worker process that was killed or exited, described in one sentence with the record that it was reading."""
