"""What is wrong with the arguments of an experiment is found before the packages that read it are imported."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("jax", "flax", "tensorflow_datasets", "grain", "orbax", "optax", "matplotlib")
MAIN = ["main.py", "--workdir=runs/x"]
BENCH = ["-m", "mambaout_jax", "bench-data"]
CALLS = {
    "a missing file": [*MAIN, "--config=nowhere.py"],
    "a folder": [*MAIN, "--config=configs"],
    "a change without a value": [*MAIN, "--config=configs/digits.py", "--config.seed"],
    "a missing file of a command": [*BENCH, "--config=nowhere.py"],
    "a change without a value of a command": [*BENCH, "--config=configs/digits.py", "--config.seed"],
}


@pytest.mark.run
@pytest.mark.parametrize("call", CALLS)
def test_a_fault_of_the_arguments_is_reported_without_heavy_imports(call):
    blocked = f"import sys; sys.modules |= dict.fromkeys({HEAVY}); import runpy; "
    command, *arguments = CALLS[call]
    if command == "-m":
        blocked += f"runpy.run_module({arguments[0]!r}, run_name='__main__', alter_sys=True)"
        arguments = arguments[1:]
    else:
        blocked += f"runpy.run_path({command!r}, run_name='__main__')"
    program = blocked.replace(
        "import runpy; ", "import runpy; import mambaout_jax.extras as e; e._is_installed = bool; "
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("error: --config")
