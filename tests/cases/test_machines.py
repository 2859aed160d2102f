"""Programs run on machines with a proxy, another encoding, no home and an unknown user."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import run_python

ROOT = Path(__file__).parents[2]
PROXY = "http://192.0.2.1:9"  # reserved for documentation: nothing answers


@pytest.mark.run
@pytest.mark.parametrize("variables", [("http_proxy",), ("https_proxy", "HTTPS_PROXY"), ("grpc_proxy",)], ids=str)
def test_processes_join_each_other_without_the_proxy(monkeypatch, variables):
    for name in variables:
        monkeypatch.setenv(name, PROXY)
    assert run_python("print(len(distributed.allgather_strings('test', 'x')))", 2, timeout=100) == ["2\n", "2\n"]


def environment(**changes):
    kept = {name: value for name, value in os.environ.items() if name not in ("HOME", "USER", "LOGNAME")}
    return {**kept, "PYTHONPATH": str(ROOT), **changes}


COMMANDS = {
    "models": ["-m", "mambaout_jax", "models"],
    "analyze": ["-m", "mambaout_jax", "analyze", "mambaout_femto"],
    "doctor": ["-m", "mambaout_jax", "doctor"],
    "help": ["main.py", "--help"],
    "error": ["main.py", "--workdir=ü", "--config=missing_ü.py"],
}


def run(command, env, **how):
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=env, capture_output=True, check=False, timeout=300, **how
    )


@pytest.mark.run
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_command_prints_to_a_terminal_of_another_encoding(command, encoding):
    found = run(COMMANDS[command], environment(PYTHONIOENCODING=encoding, HOME="/root"))
    words = (found.stdout + found.stderr).decode(encoding)
    assert "Traceback" not in words
    assert "UnicodeEncodeError" not in words


@pytest.mark.run
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_runs_without_a_home(command):
    found = run(COMMANDS[command], environment())
    assert b"Traceback" not in found.stdout + found.stderr


@pytest.fixture
def without_user(tmp_path):
    """Return an environment in which neither HOME nor the user of the process is known, as in some containers."""
    program = "import pwd\n\ndef unknown(uid):\n    raise KeyError(uid)\n\npwd.getpwuid = unknown\n"
    (tmp_path / "sitecustomize.py").write_text(program)
    env = environment(PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    env.pop("TFDS_DATA_DIR", None)
    return env


@pytest.mark.run
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_runs_as_a_user_without_a_name(command, without_user):
    found = run(COMMANDS[command], without_user)
    assert b"Traceback" not in found.stdout + found.stderr


@pytest.mark.run
def test_no_folder_is_created_in_place_of_an_unknown_home(tmp_path, without_user):
    command = [sys.executable, "-m", "mambaout_jax", "prepare", "digits"]
    found = subprocess.run(command, cwd=tmp_path, env=without_user, capture_output=True, text=True, check=False)
    assert found.returncode == 2, found.stderr
    assert "the home folder is unknown; set HOME" in found.stderr
    assert not (tmp_path / "~").exists()


@pytest.mark.run
def test_names_that_stdout_cannot_encode_are_escaped():
    program = r"from mambaout_jax.errors import escape_output as e; e(); print('\u00fc\udce9')"
    found = run(["-c", program], environment(PYTHONIOENCODING="ascii", HOME="/root"))
    assert found.stdout.strip() == rb"\xfc\xe9"
