"""The exception of tasks."""


class TaskError(ValueError):
    """An error of the user about a task, a dataset or an option; its message is one sentence."""
