"""Errors of weights that are read or written."""


class ConvertError(ValueError):
    """Weights, a file or a folder that do not fit, in one sentence."""
