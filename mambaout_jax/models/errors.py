"""User errors in the use of models."""


class ModelError(ValueError):
    """An invalid model name, option or input, described in one sentence."""
