"""Write what is there in full or not at all."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mambaout_jax.weights.errors import ConvertError

Check = Callable[[Path], None]


@contextmanager
def draft_folder(target: Path) -> Iterator[Path]:
    """Lend a hidden folder beside `target` to write in; it goes again, whatever happens.

    What is finished is moved out of it. Temporary files that libraries make beside their output lie in it too.

    Raises:
        ConvertError: what is done inside meets a full disk or another trouble of the file system.
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
    """Wait until a file or a folder's list of names is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def give_usual_mode(path: Path) -> None:
    """Give a file the permissions that any new file has; some libraries keep theirs to the owner."""
    probe = path.with_name(".mode")
    probe.touch()
    path.chmod(probe.stat().st_mode & 0o777)
    probe.unlink()


def put_file(draft: Path, target: Path, *, replace: bool) -> None:
    """Move a finished file to its place.

    Args:
        replace: what is there; otherwise what came there meanwhile is an error.
    """
    if not replace:
        try:
            os.link(draft, target)  # a rename would replace
        except FileExistsError:
            raise
        except OSError:
            replace = True  # a file system without links; what is there was looked for before
    if replace:
        draft.replace(target)
    sync(target.parent)


def put_folder(draft: Path, target: Path, *, replace: bool) -> None:
    """Move a finished folder to its place.

    Args:
        replace: the folder that is there, which comes back if that fails; a kill in between leaves it in the draft
            folder, whose name begins with a dot, beside the place. Otherwise what came there meanwhile is an error.
    """
    old = draft.with_name(f"{draft.name}.old")
    if replace and target.exists():
        target.rename(old)
    try:
        draft.rename(target)  # which nothing but an empty folder gives way to
    except BaseException:
        if old.exists():
            old.rename(target)
        raise
    sync(target.parent)
