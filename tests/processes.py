"""Run a program in several processes that join each other, as hosts do."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def start_all(count, command, flags=lambda process: ()):
    """Start main.py with --distributed once for each process; `flags` returns those of one process."""
    place = ["--distributed", f"--coordinator=localhost:{free_port()}", f"--num-processes={count}"]
    return [
        subprocess.Popen(
            [sys.executable, "main.py", *command, *place, f"--process-id={process}", *flags(process)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(count)
    ]


def finish_all(processes, timeout=400):
    """Wait, and return exit codes and the text of stderr."""
    said = [err for _, err in _communicate(processes, timeout)]
    return [process.returncode for process in processes], said


def run_python(program, count, timeout=120):
    """Run Python code in processes that have joined; `process` is its number there."""
    port = free_port()
    start = (
        "import sys; from mambaout_jax import distributed; process = int(sys.argv[1]); "
        f"distributed.initialize('localhost:{port}', {count}, process)\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", start + program, str(process)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(count)
    ]
    outputs = _communicate(processes, timeout)
    assert not any(process.returncode for process in processes), outputs
    return [out for out, _ in outputs]


def _communicate(processes, timeout):
    try:
        return [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
