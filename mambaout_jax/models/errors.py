"""What a caller of the models can get wrong."""


class ModelError(ValueError):
    """Report a model name, option or input that does not fit, in one sentence."""
