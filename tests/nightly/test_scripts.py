"""Scripts that take too long, or download too much, for every change."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.nightly
ROOT = Path(__file__).parents[2]


def run(*command):
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_a_run_that_is_killed_at_random_moments_equals_an_undisturbed_one():
    assert "bit-identical weights" in run(sys.executable, "benchmarks/chaos.py", "--kills=20")


@pytest.mark.parametrize("script", [path.name for path in sorted((ROOT / "launch").glob("test_*.sh"))])
def test_versions_and_installations(script):
    assert run(f"launch/{script}")
