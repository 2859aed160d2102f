"""The log folder of a run: its workdir, or a local folder that is copied to a workdir in a bucket."""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from etils import epath

from mambaout_jax.errors import printable
from mambaout_jax.storage import explain, is_remote


class LogFolder:
    """A local folder for files that are appended to, which objects in a bucket do not support.

    Args:
        workdir: the run's workdir; a local one is used directly.
        resumed: names of files in the workdir to append to, if they exist.
    """

    def __init__(self, workdir: epath.Path, resumed: Sequence[str]):
        self._workdir = workdir
        self._local_copy = tempfile.TemporaryDirectory(prefix="mambaout_jax-") if is_remote(workdir) else None
        self.path = epath.Path(self._local_copy.name) if self._local_copy else workdir
        if self._local_copy:
            for name in resumed:
                if (workdir / name).exists():
                    (self.path / name).write_bytes((workdir / name).read_bytes())

    def copy(self) -> None:
        """Copy all files to the workdir, if it is in a bucket."""
        if self._local_copy is None:
            return
        folder = Path(self._local_copy.name)
        for file in filter(Path.is_file, folder.rglob("*")):
            (self._workdir / file.relative_to(folder)).write_bytes(file.read_bytes())

    def close(self) -> None:
        """Copy all files and remove the local folder; a failure does not hide the error that ended the run."""
        ending = sys.exception()
        try:
            self.copy()
        except Exception as error:
            if ending is None:
                raise
            sentence = f"The last logs could not be copied to {self._workdir}: {explain(error)}"
            print(printable(sentence), file=sys.stderr)
        finally:
            if self._local_copy:
                self._local_copy.cleanup()
