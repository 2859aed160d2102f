"""What can be wrong with devices and processes."""


class ParallelError(ValueError):
    """Report devices or processes that do not fit what was asked of them, in one sentence."""


class LostProcessError(RuntimeError):
    """Report processes that did not come to where all have to meet."""
