"""The errors of data/."""


class DataError(ValueError):
    """A dataset, record, image or argument that does not fit, in one sentence."""


class WorkerDiedError(RuntimeError):
    """A worker process that was killed or exited, and the record it was reading, in one sentence."""
