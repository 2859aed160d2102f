"""The compilation cache of the tests, in the user's cache directory.

JAX writes entries in place, and tests kill processes that may be writing. So a session of tests gets a folder of its
own, with hard links to the entries of earlier sessions. Its new entries join those at its end, if they are complete.
"""

import atexit
import os
import platform
import shutil
import tempfile
import time
import zlib
from importlib.metadata import version
from pathlib import Path

MAX_AGE_SECONDS = 14 * 24 * 3600  # programs change with the code: entries that are still used are compiled again


def session_dir() -> Path:
    """Create the cache directory of this session; it is removed when the process exits."""
    shared = _shared_dir()
    try:
        session = open_session(shared)
    except OSError:  # for example, a home that is read-only
        session = Path(tempfile.mkdtemp(prefix="mambaout_jax-"))
    atexit.register(close_session, session, shared)
    return session


def open_session(shared: Path) -> Path:
    """Create a directory with links to the entries of earlier sessions, except for those that are too old."""
    shared.mkdir(parents=True, exist_ok=True)
    session = Path(tempfile.mkdtemp(prefix="session-", dir=shared))
    oldest = time.time() - MAX_AGE_SECONDS
    for path in shared.iterdir():
        if path.stat().st_mtime < oldest:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        elif not path.is_dir():
            os.link(path, session / path.name)
    return session


def close_session(session: Path, shared: Path) -> None:
    """Move complete new entries to the shared directory, and remove that of the session."""
    from jax._src.compilation_cache import decompress_executable  # the format depends on what is installed

    for entry in session.glob("*-cache") if session.parent == shared else ():
        try:
            if entry.stat().st_nlink == 1 and decompress_executable(entry.read_bytes()):
                entry.replace(shared / entry.name)
        except Exception:  # a truncated entry; each compression has an exception of its own
            continue
    shutil.rmtree(session, ignore_errors=True)


def root() -> Path:
    """Return the folder of the tests in the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mambaout_jax" / "tests"


def _shared_dir() -> Path:
    """Return the directory for this version of the compiler and this kind of CPU, for which it compiles."""
    try:
        flags = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")][:1]
    except OSError:
        flags = []
    cpu = f"{platform.machine()}-{zlib.crc32(''.join(flags).encode()):08x}"
    return root() / f"jaxlib-{version('jaxlib')}-{cpu}"
