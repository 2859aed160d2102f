"""Errors of weights that are read or written."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


class ConvertError(ValueError):
    """Weights, a file or a folder that do not fit, in one sentence."""


@contextlib.contextmanager
def converting_file_errors(target: Path) -> Iterator[None]:
    """Raise ConvertError for an error of the file system, such as a full disk, while `target` is written."""
    try:
        yield
    except OSError as error:
        raise ConvertError(
            f"{target} cannot be written ({error.strerror or error}); make room or name another place"
        ) from error
