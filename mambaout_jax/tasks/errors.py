"""User errors about tasks."""

from mambaout_jax.errors import UserError


class TaskError(UserError):
    """An invalid task, dataset or option, described in one sentence."""
