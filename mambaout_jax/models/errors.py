"""Errors of users of the models."""


class ModelError(ValueError):
    """A model name, option or input that does not fit, in one sentence."""
