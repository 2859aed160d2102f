"""The folder of a run's logs: its workdir, or a local folder that is copied to a workdir in a bucket."""

import sys
import tempfile
from pathlib import Path

from etils import epath

from mambaout_jax.data.buckets import explain, is_remote


class LogFolder:
    """A local folder for files that grow, as objects in a bucket cannot be appended to.

    Args:
        workdir: of the run; a local workdir is used itself.
        resumed: name of a file in the workdir to continue.
    """

    def __init__(self, workdir: epath.Path, resumed: str):
        self._workdir = workdir
        self._local_copy = tempfile.TemporaryDirectory(prefix="mambaout_jax-") if is_remote(workdir) else None
        self.path = epath.Path(self._local_copy.name) if self._local_copy else workdir
        if self._local_copy and (workdir / resumed).exists():
            (self.path / resumed).write_bytes((workdir / resumed).read_bytes())

    def copy(self) -> None:
        """Copy all files to a workdir in a bucket."""
        if self._local_copy is None:
            return
        folder = Path(self._local_copy.name)
        for file in filter(Path.is_file, folder.rglob("*")):
            (self._workdir / file.relative_to(folder)).write_bytes(file.read_bytes())

    def close(self) -> None:
        """Copy a last time and remove the local folder; a failure does not replace the error that ended the run."""
        ending = sys.exception()
        try:
            self.copy()
        except Exception as error:
            if ending is None:
                raise
            print(f"The last logs could not be copied to {self._workdir}: {explain(error)}", file=sys.stderr)
        finally:
            if self._local_copy:
                self._local_copy.cleanup()
