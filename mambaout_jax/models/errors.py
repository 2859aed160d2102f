"""User errors in the use of models."""

from mambaout_jax.errors import UserError


class ModelError(UserError):
    """An invalid model name, option or input, described in one sentence."""
