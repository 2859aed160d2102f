"""Where a run's logs are appended to: its workdir, or a local folder that is copied to one in a bucket."""

import sys
import tempfile
from pathlib import Path

from etils import epath

from mambaout_jax.data.buckets import explain, is_remote


class LogFolder:
    """Give a local folder for files that grow, since objects in a bucket cannot be appended to.

    Args:
        workdir: of the run; where it is local it is the folder itself.
        resumed: file of the workdir that is gone on with.
    """

    def __init__(self, workdir: epath.Path, resumed: str):
        self._workdir = workdir
        self._stand_in = tempfile.TemporaryDirectory(prefix="mambaout_jax-") if is_remote(workdir) else None
        self.path = epath.Path(self._stand_in.name) if self._stand_in else workdir
        if self._stand_in and (workdir / resumed).exists():
            (self.path / resumed).write_bytes((workdir / resumed).read_bytes())

    def copy(self) -> None:
        """Bring the workdir up to date."""
        if self._stand_in is None:
            return
        folder = Path(self._stand_in.name)
        for file in filter(Path.is_file, folder.rglob("*")):
            (self._workdir / file.relative_to(folder)).write_bytes(file.read_bytes())

    def close(self) -> None:
        """Copy for the last time, and remove what stood in; a failure does not take the place of what ended the run."""
        ending = sys.exception()
        try:
            self.copy()
        except Exception as error:
            if ending is None:
                raise
            print(f"the logs of {self._workdir} lack what came last: {explain(error)}", file=sys.stderr)
        finally:
            if self._stand_in:
                self._stand_in.cleanup()
