"""What a caller of the data room can get wrong, or find broken."""


class DataError(ValueError):
    """Report a dataset, record, image or argument that does not fit, in one sentence."""


class WorkerDiedError(RuntimeError):
    """Report a worker process that ended without a word, and what it was reading, in one sentence."""
