"""A run that ends early prints one sentence and has the documented exit code."""

import errno
import os
import re

import pytest

from mambaout_jax.data import DataError, WorkerDiedError
from mambaout_jax.distributed import DistributedError
from mambaout_jax.errors import UserError
from mambaout_jax.extras import MissingExtraError
from mambaout_jax.machine import MachineError
from mambaout_jax.models import ModelError
from mambaout_jax.plugins import PluginError
from mambaout_jax.run import errors
from mambaout_jax.run.errors import DivergedError, RunError, StoppedError, report_error
from mambaout_jax.tasks.errors import TaskError
from mambaout_jax.weights import WeightsError

NO_DEVICE = "Unable to initialize backend 'tpu': NOT_FOUND: TPU initialization failed: No jellyfish device found"
USER_ERRORS = (
    WeightsError, DataError, MissingExtraError, ModelError, DistributedError, PluginError, RunError, TaskError
)  # fmt: skip


class PluginsOwnError(UserError):
    """An error of a family or task of another package."""


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        *((kind("the sentence"), 2, "the sentence") for kind in USER_ERRORS),
        (PluginsOwnError("the sentence"), 2, "the sentence"),
        (RuntimeError(f"{NO_DEVICE}. (more)"), 2, f"{NO_DEVICE}. (more)"),
        (DivergedError("step 3 has loss nan"), 3, "step 3 has loss nan"),
        (WorkerDiedError("worker 2 died"), 1, "worker 2 died"),
        (
            OSError(errno.EROFS, "Read-only file system", "runs/x/metrics.jsonl"),
            1,
            "runs/x/metrics.jsonl: Read-only file system; fix this, then rerun the same command to resume",
        ),
        (MachineError("the disk is slow"), 1, "the disk is slow"),
    ],
)
def test_known_endings_are_a_sentence_and_a_code(capsys, error, code, sentence):
    assert report_error(error, "runs/x") == code
    assert capsys.readouterr() == ("", f"error: {sentence}\n")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError("No space left on device"), r"no space left for runs/x on the disk mounted at / \(.* MiB free\)"),
        (ValueError("Disk quota exceeded"), r"no space left for runs/x on the disk mounted at / "),
        (OSError(errno.ENOSPC, "No space left on device", "/dev/shm/x"), "the shared memory .* is full"),
        (OSError(errno.EMFILE, "Too many open files", "runs/x/a"), "too many open files; the limit of this process"),
        (MemoryError(), "the machine does not have enough memory"),
    ],
)
def test_exhausted_resources_are_named_with_their_place(capsys, error, words):
    assert report_error(error, "runs/x") == 1
    assert re.fullmatch(f"error: {words}.*; then rerun the same command to resume\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("saved", "advice"),
    [
        (True, "the state is saved; rerun the same command to resume"),
        (False, "rerun the same command"),
    ],
)
def test_a_signal_ends_the_process_at_once(monkeypatch, capsys, saved, advice):
    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr(errors.os, "_exit", leave)
    with pytest.raises(SystemExit) as ending:
        report_error(StoppedError("stopped by SIGTERM", saved=saved), "runs/x")
    assert ending.value.code == os.EX_TEMPFAIL
    assert capsys.readouterr().err == f"error: stopped by SIGTERM; {advice}\n"


@pytest.mark.parametrize("error", [ValueError("the sum"), OSError("no such file"), ZeroDivisionError()])
def test_a_failure_of_the_program_is_not_hidden(error):
    with pytest.raises(type(error)) as raised:
        report_error(error, "runs/x")
    assert raised.value is error
