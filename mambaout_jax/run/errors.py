"""How a run can end other than by finishing, and how a program tells so."""

import errno
import os
import sys
import traceback
from typing import NoReturn

import jax
from etils import epath

from mambaout_jax import distributed
from mambaout_jax.data import DataError, WorkerDiedError
from mambaout_jax.models import ModelError
from mambaout_jax.plugins import PluginError
from mambaout_jax.weights import ConvertError


class RunError(ValueError):
    """Report a config, a workdir or a checkpoint that does not fit, in one sentence."""


class DivergedError(RuntimeError):
    """Report the first step whose loss or gradient was not finite."""


class StoppedError(Exception):
    """Report that a signal stopped the run after everything worth keeping was saved."""


_OF_THE_DISK = (errno.EACCES, errno.EIO, errno.EROFS, errno.ESTALE)
USER_ERRORS = (RunError, DataError, ModelError, ConvertError, PluginError, distributed.ParallelError)


def is_user_error(error: Exception) -> bool:
    """Tell what a person typed wrong, or has no device for, and is told in one sentence without a traceback."""
    return isinstance(error, USER_ERRORS) or str(error).startswith("Unable to initialize backend")


def report_error(error: Exception, workdir: epath.PathLike) -> int:
    """Tell in one sentence why a run ended before its end, and give the exit code that says so.

    After a signal, and where other processes wait for this one, the process ends here. What is no known way to end is
    raised again.
    """
    if distributed.is_multi_process() and not isinstance(error, StoppedError):
        return _end_alone(error, workdir)
    return _tell(error, workdir)


def _end_alone(error: Exception, workdir: epath.PathLike) -> NoReturn:
    """End before the orderly end of the program, which would wait for the others."""
    if isinstance(error, jax.errors.JaxRuntimeError) and distributed.shutdown_after_remote_failure():
        _exit(_complain("another process failed, and says why; the same command goes on", os.EX_TEMPFAIL))
    try:
        code = _tell(error, workdir)
    except Exception:  # what is no known way to end: shown as Python would, since nothing may unwind further
        traceback.print_exc()
        code = 1
    distributed.shutdown_after_local_failure()
    _exit(code)


def _tell(error: Exception, workdir: epath.PathLike) -> int:
    if isinstance(error, StoppedError):
        _complain(f"{error}; everything is saved, the same command goes on", os.EX_TEMPFAIL)
        distributed.shutdown()
        _exit(os.EX_TEMPFAIL)  # a compilation that was left behind in a thread would crash an orderly exit
    if isinstance(error, distributed.LostProcessError):
        return _complain(f"{error}; the same command goes on", os.EX_TEMPFAIL)
    if is_user_error(error):
        return _complain(str(error), 2)
    if isinstance(error, DivergedError):
        return _complain(str(error), 3)
    if isinstance(error, WorkerDiedError):
        return _complain(str(error), 1)
    if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
        return _complain(f"{error.filename or workdir}: {error.strerror}; mended, the same command goes on", 1)
    if isinstance(error, OSError | ValueError) and is_full_disk(error):
        return _complain(f"no space is left for {workdir}; make room, the same command goes on", 1)
    raise error


def _exit(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def is_full_disk(error: Exception) -> bool:
    """Tell whether what was raised means that no space is left: by the words, since tensorstore has no errno."""
    return any(words in str(error) for words in ("No space left on device", "Disk quota exceeded"))


def _complain(sentence: str, code: int) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return code
