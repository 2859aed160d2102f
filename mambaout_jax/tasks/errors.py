"""User errors about tasks."""


class TaskError(ValueError):
    """An invalid task, dataset or option, described in one sentence."""
