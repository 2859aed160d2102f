"""A run that is stopped says so, and saves what it has: at any moment, also when its terminal closes."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.train.runs import ROOT, command, records

pytestmark = pytest.mark.run


def newest_step(workdir):
    return max((int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*")), default=0)


# Programs that end as the command that they are given, with the terminal on stdin as their own, or without SIGHUP.
OWN_TERMINAL = (
    "import fcntl, os, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "signal.signal(signal.SIGHUP, signal.SIG_DFL); "  # ignored below nohup
    "os.execv(sys.argv[1], sys.argv[1:])"
)
NO_HANGUP = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"


def wait_until(process, condition):
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


def catches(process, number):
    """Return whether a process has a handler for a signal."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (number - 1) & 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("seconds", [0, 1.5])
@pytest.mark.parametrize("program", ["main", "study"])
def test_a_signal_in_the_first_seconds_is_one_sentence(tmp_path, program, number, seconds):
    study = [sys.executable, "-m", "mambaout_jax", "study", "--dataset=digits", f"--workdir={tmp_path}/run"]
    process = subprocess.Popen(
        command(tmp_path / "run") if program == "main" else study, cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    wait_until(process, lambda: catches(process, signal.SIGTERM))
    time.sleep(seconds)
    process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == os.EX_TEMPFAIL, errors
    assert errors.splitlines()[-1] == f"error: stopped by {number.name}; rerun the same command to resume"
    assert "Traceback" not in errors


def test_a_run_whose_terminal_closes_saves_its_state(tmp_path):
    ours, theirs = pty.openpty()
    line = [sys.executable, "-c", OWN_TERMINAL, *command(tmp_path / "run", num_epochs=2000)]
    process = subprocess.Popen(line, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    os.set_blocking(ours, False)

    def read_and_look():
        with contextlib.suppress(BlockingIOError):
            os.read(ours, 100_000)
        return records(tmp_path / "run", "train")

    wait_until(process, read_and_look)
    os.close(ours)
    assert process.wait(timeout=300) == os.EX_TEMPFAIL
    assert newest_step(tmp_path / "run") > 0


@pytest.mark.nightly
def test_a_run_that_ignores_a_closed_terminal_goes_on(tmp_path):
    line = [sys.executable, "-c", NO_HANGUP, *command(tmp_path / "run", num_epochs=2000)]
    process = subprocess.Popen(line, cwd=ROOT, stderr=subprocess.DEVNULL)
    wait_until(process, lambda: records(tmp_path / "run", "train"))
    process.send_signal(signal.SIGHUP)
    time.sleep(1)
    assert process.poll() is None
    process.terminate()
    assert process.wait(timeout=300) == os.EX_TEMPFAIL


def test_a_listing_ends_at_control_c(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "mambaout_jax", "models"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode in (130, -signal.SIGINT)
    assert not errors
