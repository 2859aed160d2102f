"""Whole runs of the small experiment, by the program."""

import json
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

from mambaout_jax.run.workdir import load_run
from tests.train import tiny

ROOT = Path(__file__).parents[2]


def command(workdir, **changes):
    """Return the command that starts a run of the small experiment."""
    return [sys.executable, "main.py", *tiny.flags(**changes), f"--workdir={workdir}"]


def main(workdir, **changes):
    """Run the program to its end."""
    return subprocess.run(command(workdir, **changes), cwd=ROOT, capture_output=True, text=True, check=False)


def records(workdir, kind):
    """Read the lines of one kind that a run has logged so far."""
    try:
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def start(workdir, until, **changes):
    """Start the program and return once `until()` holds."""
    process = subprocess.Popen(
        command(workdir, **changes), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 300
    while not until(process):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def assert_same_weights(a, b):
    """Compare the final states of two runs bit by bit."""
    for weights in ("raw", "ema"):
        left, right = load_run(a, weights), load_run(b, weights)
        assert left.step == right.step
        for x, y in zip(jax.tree.leaves(left.variables), jax.tree.leaves(right.variables), strict=True):
            np.testing.assert_array_equal(x, y)
