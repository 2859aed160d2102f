"""How a run can end other than by finishing."""


class RunError(ValueError):
    """Report a config, a workdir or a checkpoint that does not fit, in one sentence."""


class DivergedError(RuntimeError):
    """Report the first step whose loss or gradient was not finite."""


class StoppedError(Exception):
    """Report that a signal stopped the run after everything worth keeping was saved."""


def is_full_disk(error: Exception) -> bool:
    """Tell whether what was raised means that no space is left: by the words, since tensorstore has no errno."""
    return any(words in str(error) for words in ("No space left on device", "Disk quota exceeded"))
