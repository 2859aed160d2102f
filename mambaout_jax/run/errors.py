"""The exceptions that end a run early, with their messages and exit codes."""

import errno
import os
import sys
import traceback
from typing import NoReturn

import jax
from etils import epath

from mambaout_jax import distributed
from mambaout_jax.errors import UserError, is_user_error, print_error
from mambaout_jax.machine import MachineError, describe_fault, is_exhausted


class RunError(UserError):
    """An invalid config, workdir or checkpoint, described in one sentence."""


class DivergedError(RuntimeError):
    """A step with a loss or gradient that is not finite."""


class StoppedError(Exception):
    """A stop that was requested by a signal.

    Args:
        saved: whether there is a state of a training run to resume from.
    """

    def __init__(self, message: str, *, saved: bool = False):
        super().__init__(message)
        self.saved = saved


RERUN = "rerun the same command to resume"
_DISK_ERRORS = (errno.EACCES, errno.EIO, errno.EROFS, errno.ESTALE)


def report_error(error: Exception, workdir: epath.PathLike) -> int:
    """Print the message of the error that ended a run, and return its exit code; re-raise unknown errors.

    After a signal, and in a multi-process run, the process exits here.
    """
    if distributed.is_multi_process() and not isinstance(error, StoppedError):
        return _exit_alone(error, workdir)
    return _report(error, workdir)


def _exit_alone(error: Exception, workdir: epath.PathLike) -> NoReturn:
    """Exit without the regular shutdown, which would wait for the other processes."""
    if isinstance(error, jax.errors.JaxRuntimeError) and distributed.shutdown_after_remote_failure():
        _exit(print_error(f"another process failed, see its output; {RERUN}", os.EX_TEMPFAIL))
    try:
        code = _report(error, workdir)
    except Exception:  # an unknown error cannot propagate, so its traceback is printed here
        traceback.print_exc()
        code = 1
    distributed.shutdown_after_local_failure()
    _exit(code)


def _report(error: Exception, workdir: epath.PathLike) -> int:
    if isinstance(error, StoppedError):
        advice = f"the state is saved; {RERUN}" if error.saved else "rerun the same command"
        print_error(f"{error}; {advice}", os.EX_TEMPFAIL)
        distributed.shutdown()
        _exit(os.EX_TEMPFAIL)  # a compilation that still runs in a thread would crash a regular exit
    if isinstance(error, distributed.LostProcessError):
        return print_error(f"{error}; {RERUN}", os.EX_TEMPFAIL)
    if is_user_error(error):
        return print_error(error)
    if isinstance(error, DivergedError):
        return print_error(error, 3)
    if isinstance(error, MachineError):
        return print_error(error, 1)
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return print_error(f"{error.filename or workdir}: {error.strerror}; fix this, then {RERUN}", 1)
    if is_exhausted(error):
        return print_error(f"{describe_fault(error, workdir)}; then {RERUN}", 1)
    raise error


def _exit(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
