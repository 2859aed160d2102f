"""on_host.sh runs one command at a time and reports its state, also after a reboot or the loss of a process."""

import contextlib
import os
import shutil
import signal
import subprocess
import time

import pytest

from tests.launch.conftest import ROOT

pytestmark = pytest.mark.run


@pytest.fixture
def host(tmp_path):
    """Provide a function that runs on_host.sh in a checkout; its processes end with the test."""
    (tmp_path / "launch").mkdir()
    for name in ("on_host.sh", "shell.sh"):
        shutil.copy(ROOT / "launch" / name, tmp_path / "launch")

    def call(*words):
        command = [tmp_path / "launch/on_host.sh", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    call.folder = tmp_path
    yield call
    call("stop")


def pids(host):
    run, keeper, _ = (host.folder / "run.pid").read_text().split()
    return int(run), int(keeper)


def wait_for_end(host):
    for _ in range(400):
        if host("running") == "mambaout-running no\n":
            return
        time.sleep(0.02)
    raise AssertionError("it still runs")


def test_running_prints_whether_there_is_a_run(host):
    assert host("running") == "mambaout-running no\n"
    host("start", "bash", "-c", "echo begun; exec sleep 100")
    assert host("running") == "mambaout-running yes\n"
    host("stop")
    assert host("running") == "mambaout-running no\n"
    assert host("follow") == "begun\n\nmambaout-code 143\n"


def test_second_start_does_not_affect_a_run(host):
    host("start", "sleep", "100")
    before = pids(host)
    host("start", "false")
    assert pids(host) == before
    assert host("follow") == "\nmambaout-code running\n"
    host("stop")
    host("start", "bash", "-c", "exit 3")
    wait_for_end(host)
    assert host("follow") == "\nmambaout-code 3\n"


def test_run_without_its_waiting_process_counts_until_it_ends(host):
    host("start", "sleep", "100")
    run, keeper = pids(host)
    os.kill(keeper, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        for _ in range(400):  # until the process is reaped
            os.kill(keeper, 0)
            time.sleep(0.02)
    assert host("follow") == "\nmambaout-code running\n"
    os.kill(run, signal.SIGKILL)
    wait_for_end(host)
    assert host("follow") == "\nmambaout-code 75\n"


def test_run_before_a_reboot_is_lost_though_another_has_its_pid(host):
    host("start", "sleep", "100")
    path = host.folder / "run.pid"
    now = path.read_text()
    run, keeper, boot = now.split()
    path.write_text(f"{run} {keeper} {boot[::-1]}\n")
    assert host("running") == "mambaout-running no\n"
    assert host("follow") == "\nmambaout-code 75\n"
    host("stop")
    path.write_text(now)
    assert host("running") == "mambaout-running yes\n"  # the process was not the run anymore
