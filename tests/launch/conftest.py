"""Fixtures: a checkout, a fake gcloud, and folders that stand for hosts."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
TRAINING = (
    "--name=tiny",
    "--zone=us-west4-a",
    "--config=configs/imagenet.py:mambaout_tiny",
    "--workdir=gs://b/runs/tiny",
)


@pytest.fixture
def cloud(tmp_path):
    """Provide `play`, which runs a launcher against the scripted fakes, and access to the resulting files."""
    checkout, home, tools, elsewhere = (tmp_path / name for name in ("checkout", "cloud", "tools", "elsewhere"))
    for name in ("launch", "configs"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("main.py", "setup.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    (checkout / "mambaout_jax").mkdir()
    for folder in (home, tools, elsewhere):
        folder.mkdir()
    write_tool(tools / "gcloud", f'exec "{sys.executable}" -I -S "{HERE / "fake_gcloud.py"}" "$@"')
    host_python = f'exec "{sys.executable}" -I -S "{HERE / "fake_host_python.py"}" "$@"'
    make_venv = f'for last; do :; done\nmkdir -p "$last/bin"\ncp "{tools}/host_python" "$last/bin/python"'
    write_tool(tools / "uv", f'[ "$1" = venv ] || exit 0\n{make_venv}')
    write_tool(tools / "host_python", host_python)
    environment = {
        "PATH": f"{tools}:/usr/bin:/bin",
        "HOME": str(tmp_path / "home"),
        "FAKE_CLOUD": str(home),
        "TMPDIR": str(elsewhere),
        "MAMBAOUT_POLL_SECONDS": "0.05",
    }

    started = []

    def start(launcher, *arguments, script=None, runs=()):
        (home / "script.json").write_text(json.dumps(script or {}))
        (home / "runs.json").write_text(json.dumps(runs))
        process = subprocess.Popen(
            [checkout / "launch" / launcher, *arguments],
            cwd=elsewhere,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    def finish(process, code):
        text, _ = process.communicate(timeout=120)
        assert process.returncode == code, text
        assert not list(elsewhere.iterdir()), "a launcher left files behind"
        return without_scratch(text.replace(str(checkout), "CHECKOUT"))

    def play(launcher, *arguments, code=0, **world):
        return finish(start(launcher, *arguments, **world), code)

    def calls():
        log = home / "calls.txt"
        return without_scratch(log.read_text()).splitlines() if log.exists() else []

    def wait_for(name):
        for _ in range(1200):
            if (home / name).exists():
                return
            time.sleep(0.05)
        raise AssertionError(f"{name} did not come")

    yield SimpleNamespace(play=play, start=start, finish=finish, calls=calls, wait_for=wait_for, home=home)
    for process in started:
        process.kill()
        process.communicate()
    for path in home.glob("hosts/*/mambaout/run.pid"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(path.read_text().split()[0]), signal.SIGKILL)


def without_scratch(text):
    return re.sub(r"[^\s='\"]*\btmp\.\w+", "SCRATCH", text)


def write_tool(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
