"""How a run can end other than by finishing, its exit codes, and their messages."""

import errno
import os
import sys
import traceback
from typing import NoReturn

import jax
from etils import epath

from mambaout_jax import distributed
from mambaout_jax.data import DataError, WorkerDiedError
from mambaout_jax.extras import MissingExtraError
from mambaout_jax.models import ModelError
from mambaout_jax.plugins import PluginError
from mambaout_jax.tasks.errors import TaskError
from mambaout_jax.weights import ConvertError


class RunError(ValueError):
    """A config, a workdir or a checkpoint that does not fit, in one sentence."""


class DivergedError(RuntimeError):
    """The first step whose loss or gradient was not finite."""


class StoppedError(Exception):
    """The end of a run by a signal, after everything worth keeping was saved."""


RERUN = "rerun the same command to resume"
_OF_THE_DISK = (errno.EACCES, errno.EIO, errno.EROFS, errno.ESTALE)
USER_ERRORS = (
    RunError, TaskError, DataError, ModelError, ConvertError, PluginError, MissingExtraError, distributed.ParallelError
)  # fmt: skip


def is_user_error(error: Exception) -> bool:
    """Check whether an error is about something that was typed or a missing device, and needs no traceback."""
    return isinstance(error, USER_ERRORS) or str(error).startswith("Unable to initialize backend")


def report_error(error: Exception, workdir: epath.PathLike) -> int:
    """Print in one sentence why a run ended early, and return its exit code.

    After a signal, and where other processes wait for this one, the process exits here. An unknown error is raised
    again.
    """
    if distributed.is_multi_process() and not isinstance(error, StoppedError):
        return _exit_alone(error, workdir)
    return _report(error, workdir)


def _exit_alone(error: Exception, workdir: epath.PathLike) -> NoReturn:
    """Exit without the orderly shutdown of the program, which would wait for the other processes."""
    if isinstance(error, jax.errors.JaxRuntimeError) and distributed.shutdown_after_remote_failure():
        _exit(_print_error(f"another process failed, and printed why; {RERUN}", os.EX_TEMPFAIL))
    try:
        code = _report(error, workdir)
    except Exception:  # an unknown error is shown as Python would, since nothing may unwind further
        traceback.print_exc()
        code = 1
    distributed.shutdown_after_local_failure()
    _exit(code)


def _report(error: Exception, workdir: epath.PathLike) -> int:
    if isinstance(error, StoppedError):
        _print_error(f"{error}; everything is saved, {RERUN}", os.EX_TEMPFAIL)
        distributed.shutdown()
        _exit(os.EX_TEMPFAIL)  # a compilation that was abandoned in a thread would crash an orderly exit
    if isinstance(error, distributed.LostProcessError):
        return _print_error(f"{error}; {RERUN}", os.EX_TEMPFAIL)
    if is_user_error(error):
        return _print_error(str(error), 2)
    if isinstance(error, DivergedError):
        return _print_error(str(error), 3)
    if isinstance(error, WorkerDiedError):
        return _print_error(str(error), 1)
    if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
        return _print_error(f"{error.filename or workdir}: {error.strerror}; when that is fixed, {RERUN}", 1)
    if isinstance(error, OSError | ValueError) and is_full_disk(error):
        return _print_error(f"no space is left for {workdir}; make room, then {RERUN}", 1)
    raise error


def _exit(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def is_full_disk(error: Exception) -> bool:
    """Check whether an error means that no space is left: by its text, since tensorstore sets no errno."""
    return any(words in str(error) for words in ("No space left on device", "Disk quota exceeded"))


def _print_error(sentence: str, code: int) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return code
