"""Faults of the machine, as opposed to faults of the user's data and files.

Only bytes that do not decode are a fault of the data. A file that cannot be opened or read, a full disk, missing memory
and an unresponsive server are faults of the machine: no record is at fault, and preparing the dataset again or skipping
records does not help. Standard library only.
"""

import contextlib
import errno
import os
import re
import resource
import shutil
from pathlib import Path

from mambaout_jax.errors import UserError

SHARED_MEMORY = "/dev/shm"
# Libraries raise these as errors of their own types, with the text of the system.
_CODES = (
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENOMEM,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.EROFS,
    errno.ESTALE,
    errno.ENODEV,
    errno.ENOTCONN,
    errno.ETIMEDOUT,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
)
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)
_PERMISSIONS = (errno.EACCES, errno.EPERM, errno.EROFS)
_OPENCV_MEMORY = "Insufficient memory"
_SYSTEM_CALL = re.compile(r"\w\(\) failed: ([^;]+)")  # the words of Riegeli, which reads and writes ArrayRecord
_PATH = re.compile(r"\b(?:opening|reading|writing) (/[^;]+)")


class MachineError(OSError):
    """A fault of the machine, described in one sentence with its cause and the remedy."""


def describe_fault(error: BaseException, place: str | os.PathLike = "") -> str:
    """Return one sentence on the fault of the machine that an exception reports; empty if it reports none.

    Exceptions of decoders without an error number of the system say that the bytes do not decode.

    Args:
        place: what was read or written, for exceptions that do not name a file.
    """
    if isinstance(error, MachineError):
        return str(error)
    if isinstance(error, UserError):
        return ""
    code = _error_code(error)
    if code == errno.ENOMEM:
        return "the machine does not have enough memory; use fewer workers (config.data.num_workers) or smaller batches"
    path = _path(error) or os.fspath(place)
    if code == errno.EMFILE:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return f"too many open files; the limit of this process is {soft} (ulimit -n): raise it, or use fewer workers"
    if code == errno.ENFILE:
        return "too many open files on this machine; close other programs, or raise fs.file-max"
    if code in (errno.ENOSPC, errno.EDQUOT):
        return describe_full_shared_memory() if _is_in(path, SHARED_MEMORY) else _describe_full_disk(path)
    if code is not None:
        return f"{path}: {os.strerror(code)}; check the disk and its permissions" if path else os.strerror(code)
    if isinstance(error, TimeoutError | ConnectionError):
        return " ".join(str(error).split()) or "a server did not answer"
    call = _SYSTEM_CALL.search(str(error))
    return " ".join(str(error).split()) if call else ""


def raise_machine_fault(error: BaseException, place: str | os.PathLike = "", *, to_write: bool = False) -> None:
    """Raise the fault of the machine that an exception reports as a MachineError; return if it reports none.

    Handlers that turn an exception into an error of the user, or into no error, call it first. Paths that do not exist
    or are of another kind are faults of the user.

    Args:
        place: what was read or written, for exceptions that do not name a file.
        to_write: a file or folder of the user's choice was written; missing permission is a reason to choose another.

    Raises:
        MachineError: the exception reports a fault of the machine.
    """
    code = error.errno if isinstance(error, OSError) else None
    if code and (code not in _CODES or (to_write and code in _PERMISSIONS)):
        return
    if fault := describe_fault(error, place):
        raise MachineError(fault) from error


def is_exhausted(error: BaseException) -> bool:
    """Return whether an exception reports missing memory, disk space or open files."""
    return _error_code(error) in _EXHAUSTED


def describe_full_shared_memory() -> str:
    """Return one sentence on full shared memory."""
    usage = shutil.disk_usage(SHARED_MEMORY) if os.path.isdir(SHARED_MEMORY) else None
    size = f" ({usage.total / 2**20:.0f} MiB in {SHARED_MEMORY})" if usage else ""
    return (
        f"the shared memory for the batches of data workers is full{size}; enlarge it, in Docker with --shm-size=8g, "
        "or set config.data.num_workers=0"
    )


def raise_open_file_limit() -> None:
    """Raise the limit of open files of this process and its children to the largest that the system allows.

    Many systems start programs with 1,024, which suits programs that call select(2); ImageNet alone has 1,088 files.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # macOS has a lower limit than the one it reports
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _error_code(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno:
        return error.errno
    text = str(error)
    if isinstance(error, MemoryError) or _OPENCV_MEMORY in text:
        return errno.ENOMEM
    if isinstance(error, UserError):
        return None
    return next((code for code in _CODES if os.strerror(code) in text), None)


def _path(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename:
        return os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    found = _PATH.search(str(error))
    return found[1].strip() if found else ""


def _is_in(path: str, folder: str) -> bool:
    return bool(path) and Path(path).is_relative_to(folder)


def _describe_full_disk(path: str) -> str:
    if not path or "://" in path:
        return f"no space left {f'for {path}' if path else 'on a disk'}; free some space"
    nearest = next(folder for folder in (Path(path).absolute(), *Path(path).absolute().parents) if folder.exists())
    mount = next(folder for folder in (nearest, *nearest.parents) if os.path.ismount(folder))
    free = shutil.disk_usage(nearest).free / 2**20
    return f"no space left for {path} on the disk mounted at {mount} ({free:,.0f} MiB free); free some space"
