"""Errors of exports."""

from mambaout_jax.errors import UserError


class ExportError(UserError):
    """A model that cannot be exported as asked, described in one sentence."""
