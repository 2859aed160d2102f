"""What can be wrong with weights that come from elsewhere or go there."""


class ConvertError(ValueError):
    """Report weights, a file or a folder that do not fit, in one sentence."""
