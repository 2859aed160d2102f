"""Preparation commands under the signals of terminals and schedulers."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mambaout_jax.tasks.classification.source import open_source
from tests.data import photos

pytestmark = pytest.mark.run

NUM_IMAGES = 2000
ROOT = Path(__file__).parents[3]
SMALL_SHARDS = """
from mambaout_jax.data.prepare import dataset_writer, shards
dataset_writer.shard_utils.ShardConfig.calculate_number_shards = lambda size, images: 4
from mambaout_jax.__main__ import main
if __name__ == "__main__":
    raise SystemExit(main())
"""


@pytest.fixture
def command(tmp_path):
    """Return a command that takes some seconds with two workers, in 4 shards."""
    image = photos.encode(photos.make_photo(30).resize((900, 700)))
    for number in range(NUM_IMAGES):
        path = tmp_path / "insects" / ("ant", "bee")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    (tmp_path / "program.py").write_text(SMALL_SHARDS)
    words = ("prepare", "folder", str(tmp_path / "insects"), "--workers=2", f"--data-dir={tmp_path}/out")
    return [sys.executable, str(tmp_path / "program.py"), *words]


def environment():
    """Return an environment in which the program imports the package."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def start(command):
    """Start the command in its own process group, and wait for its two workers."""
    process = subprocess.Popen(command, start_new_session=True, env=environment(), stderr=subprocess.PIPE, text=True)
    while len(pids := workers_of(process)) < 2:
        assert process.poll() is None, process.stderr.read()
    return process, pids


def manifests_of(command):
    """List the manifests of finished shards."""
    return list(Path(command[-1].partition("=")[2]).glob("insects/1.0.0.incomplete/manifests/*.json"))


def await_manifest(process, command):
    """Wait until a shard is finished."""
    while not manifests_of(command):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)


def workers_of(process):
    """Return the child processes of `process`, except multiprocessing's helper."""
    lines = subprocess.run(["ps", "-ww", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in lines.splitlines()]
    return [int(row[0]) for row in rows if row[1] == str(process.pid) and "spawn_main" in row[2]]


def await_end(pids):
    """Wait until the processes have exited."""
    deadline = time.monotonic() + 20
    while any(
        Path(f"/proc/{pid}").exists() and "zombie" not in Path(f"/proc/{pid}/status").read_text() for pid in pids
    ):
        assert time.monotonic() < deadline, "a worker outlived the command"
        time.sleep(0.05)


@pytest.mark.parametrize(("number", "group", "code"), [(signal.SIGINT, True, 130), (signal.SIGTERM, False, 143)])
def test_a_stopped_command_leaves_no_workers_and_no_dataset(command, tmp_path, number, group, code):
    process, pids = start(command)
    if number == signal.SIGTERM:
        await_manifest(process, command)
    else:
        time.sleep(0.3)  # Ctrl-C comes while the workers are still importing
    (os.killpg if group else os.kill)(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in errors
    await_end(pids)
    assert len(manifests_of(command)) <= 2, "the workers went on after the signal"
    assert not (tmp_path / "out" / "insects" / "1.0.0").exists()


def test_a_killed_command_resumes(command, tmp_path):
    process, pids = start(command)
    await_manifest(process, command)
    process.kill()
    process.communicate(timeout=60)
    await_end(pids)
    command[5] = "--workers=1"
    again = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert "of 4 shards exist from an earlier run" in again.stderr
    assert len(open_source("insects", "train", str(tmp_path / "out"))) == NUM_IMAGES


def test_a_killed_worker_ends_the_command_with_a_message(command):
    process, pids = start(command)
    await_manifest(process, command)
    os.kill(pids[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.splitlines()[-1].startswith("error: a worker process was killed")
