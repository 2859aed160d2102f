"""What a caller of a task can get wrong."""


class TaskError(ValueError):
    """A task, a dataset or an option that does not fit, in one sentence."""
