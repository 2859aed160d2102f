"""Errors in the setup of devices and processes."""

from mambaout_jax.errors import UserError


class DistributedError(UserError):
    """An invalid setup of devices or processes, described in one sentence."""


class LostProcessError(RuntimeError):
    """Processes that did not reach a barrier in time."""
