"""Atomic writes: a file or folder is there in full or not at all."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mambaout_jax.weights.errors import ConvertError

Check = Callable[[Path], None]


@contextmanager
def atomic_dir(target: Path) -> Iterator[Path]:
    """Create a hidden folder next to `target` to write in, and remove it at the end in any case.

    What is finished is moved out of it by `commit_file` or `commit_folder`. Temporary files that libraries write next
    to their output are in it too.

    Raises:
        ConvertError: the disk is full or the file system refuses.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name[:100]}.", dir=target.parent))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise ConvertError(
            f"{target} cannot be written ({error.strerror or error}); make room or name another place"
        ) from error


def sync(path: Path) -> None:
    """Wait until a file, or the list of names of a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_default_mode(path: Path) -> None:
    """Set the permissions that any new file has; some libraries keep theirs to the owner."""
    probe = path.with_name(".mode")
    probe.touch()
    path.chmod(probe.stat().st_mode & 0o777)
    probe.unlink()


def commit_file(draft: Path, target: Path, *, replace: bool) -> None:
    """Move a finished file to its place.

    Args:
        replace: an existing file; otherwise one that appeared in the meantime is an error.
    """
    if not replace:
        try:
            os.link(draft, target)  # a rename would replace
        except FileExistsError:
            raise
        except OSError:
            replace = True  # a file system without links; existing files were checked before
    if replace:
        draft.replace(target)
    sync(target.parent)


def commit_folder(draft: Path, target: Path, *, replace: bool) -> None:
    """Move a finished folder to its place.

    Args:
        replace: an existing folder, which comes back if that fails; a kill in between leaves it in the hidden folder
            next to the place. Otherwise one that appeared in the meantime is an error.
    """
    old = draft.with_name(f"{draft.name}.old")
    if replace and target.exists():
        target.rename(old)
    try:
        draft.rename(target)  # which replaces nothing but an empty folder
    except BaseException:
        if old.exists():
            old.rename(target)
        raise
    sync(target.parent)
