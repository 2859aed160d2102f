"""A supervisor prints why its child ended, and returns an exit code for the launcher."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mambaout_jax import supervisor

ROOT = Path(__file__).parent.parent
# What jaxlib 0.10 printed as process 1 of 2 was killed, as process 0 was, and as process 1 never came.
LOST = "absl::Status: UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n1\nThe tasks have"
COORDINATOR_LOST = "absl::Status: UNAVAILABLE: Failed to send RPC to coordination service. Either the leader task was"
NEVER_CAME = (
    "absl::Status: DEADLINE_EXCEEDED: Deadline Exceeded\n\nRPC: /xla.coordination.CoordinationService/RegisterTask"
)


def supervise(child):
    parent = f"import sys; from mambaout_jax import supervisor; sys.exit(supervisor.supervise(['-c', {child!r}]))"
    return subprocess.Popen([sys.executable, "-c", parent], cwd=ROOT, stderr=subprocess.PIPE, text=True)


def alive(process):
    """Return whether a process that is not a child of this one runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.run
@pytest.mark.parametrize("code", [0, 1, 2, 3, 75])
def test_exit_codes_are_the_childs(code):
    parent = supervise(f"import sys; print('said', file=sys.stderr); sys.exit({code})")
    assert parent.communicate(timeout=30)[1] == "said\n"
    assert parent.returncode == code


@pytest.mark.run
@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (LOST, "lost process 1: no heartbeat"),
        (COORDINATOR_LOST, "lost process 0: unreachable"),
        (NEVER_CAME, "not all processes joined in time"),
        ("", "the process was terminated by SIGABRT"),
    ],
)
def test_an_abort_is_explained_and_means_start_again(said, sentence):
    parent = supervise(f"import os, sys; print({said!r}, file=sys.stderr, flush=True); os.abort()")
    told = parent.communicate(timeout=30)[1]
    assert sentence in told.splitlines()[-1]
    assert "rerun the same command to resume" in told
    assert parent.returncode == os.EX_TEMPFAIL


@pytest.mark.run
def test_signals_reach_the_child():
    parent = supervise(
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        "print('ready', file=sys.stderr, flush=True); time.sleep(60)"
    )
    assert parent.stderr.readline() == "ready\n"
    with parent:
        parent.terminate()
        assert parent.wait(timeout=30) == os.EX_TEMPFAIL


@pytest.mark.run
def test_a_second_signal_ends_a_child_that_does_not_listen():
    parent = supervise(
        "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('ready', file=sys.stderr, flush=True); time.sleep(60)"
    )
    assert parent.stderr.readline() == "ready\n"
    with parent:
        parent.terminate()
        time.sleep(0.2)
        parent.terminate()
        assert parent.wait(timeout=30) == os.EX_TEMPFAIL


@pytest.mark.run
def test_a_child_that_waits_hears_ctrl_c():
    parent = supervise(
        "import itertools, sys; from mambaout_jax import supervisor; supervisor.exit_with_supervisor()\n"
        "print('ready', file=sys.stderr, flush=True); sum(itertools.repeat(1))"  # does not return to Python
    )
    assert parent.stderr.readline() == "ready\n"
    with parent:
        parent.send_signal(signal.SIGINT)
        assert parent.wait(timeout=30) == os.EX_TEMPFAIL


def test_asking_for_a_supervisor_changes_nothing(monkeypatch):
    assert not supervisor.is_supervised()
    monkeypatch.setenv(supervisor.MARK, "1")
    before = signal.getsignal(signal.SIGINT), threading.active_count()
    assert supervisor.is_supervised()
    assert (signal.getsignal(signal.SIGINT), threading.active_count()) == before


@pytest.mark.run
def test_no_child_outlives_its_parent():
    parent = supervise(
        "import os, sys, time; from mambaout_jax import supervisor; supervisor.exit_with_supervisor()\n"
        "print(os.getpid(), file=sys.stderr, flush=True); time.sleep(60)"
    )
    with parent:
        child = int(parent.stderr.readline())
        parent.send_signal(signal.SIGKILL)
        parent.wait(timeout=30)
    deadline = time.monotonic() + 30
    while alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.1)
