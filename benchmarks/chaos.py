"""Kill processes of a run repeatedly, restart it each time, and compare it with an undisturbed run.

    python benchmarks/chaos.py [--kills N] [--processes N] [--seed N] [--workdir DIR] [--json PATH]

Trains on handwritten digits, in processes on this machine that communicate by gloo. At random times, a random process
gets SIGKILL or SIGTERM; once all processes have exited, all are restarted. The claims: no checkpoint is ever
unreadable, all processes exit within a minute of the signal, with exit code 75 for "restart", and the final weights
equal those of the undisturbed run bit for bit. If a process is killed before it has joined, the others wait for it as
long as for a slow host, and then exit. Missed claims are printed, and the exit code is then 1.
"""

import argparse
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from _timing import finish, machine, write_json

from mambaout_jax.distributed.hosts import JOINING_SECONDS
from mambaout_jax.run.workdir import load_run

ROOT = Path(__file__).parent.parent
LIMIT_SECONDS = 60
# Signals arrive while the run starts, compiles, trains, evaluates and saves. The run is long enough for twenty of them:
# a start takes half of the longest delay, so that a signal leaves a few seconds of training on average.
LONGEST_DELAY_SECONDS = 30
SETTINGS = ("num_epochs=30", "eval_every_epochs=4", "save_every_steps=11", "log_every_steps=11")


def main() -> None:
    """Run once undisturbed and once with signals, and compare the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workdir", help="folder of both runs (default: a temporary folder)")
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args()
    print(*(f"{name}: {value}" for name, value in machine().items()), sep="\n")
    folder = Path(args.workdir or tempfile.mkdtemp())
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
    rng, missed = random.Random(args.seed), []

    seconds = time.monotonic()
    codes = wait(start(folder / "whole", args.processes))
    seconds = time.monotonic() - seconds
    if any(codes):
        sys.exit(f"error: the undisturbed run exited with {codes}")
    print(f"undisturbed: {seconds:.0f} s")
    kills = [interrupt_once(folder / "broken", args.processes, rng, missed) for _ in range(args.kills)]
    if any(codes := wait(start(folder / "broken", args.processes))):
        sys.exit(f"error: a run without a signal exited with {codes}; its files are in {folder}")
    if any((folder / "broken").glob("unreadable.*")):
        missed.append("checkpoints were unreadable")
    for weights in ("raw", "ema"):
        one, other = (load_run(folder / name, weights) for name in ("whole", "broken"))
        same = jax.tree.map(np.array_equal, one.variables, other.variables)
        if one.step != other.step or not all(jax.tree.leaves(same)):
            missed.append(f"the {weights} weights differ from those of the undisturbed run")
    if not missed:
        print("bit-identical weights")
    write_json(args.json, {"kills": kills, "missed": missed})
    if args.workdir is None:
        shutil.rmtree(folder)
    finish(missed)


def start(workdir, count):
    """Start the processes of a run."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "main.py", "--config=configs/digits.py", f"--workdir={workdir}", "--distributed",
               f"--coordinator=localhost:{port}", f"--num-processes={count}",
               *(f"--config.{setting}" for setting in SETTINGS)]  # fmt: skip
    workdir.parent.mkdir(parents=True, exist_ok=True)
    with open(stderr_file(workdir), "w") as file:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": file, "cwd": ROOT}
        return [subprocess.Popen([*command, f"--process-id={process}"], **quiet) for process in range(count)]


def stderr_file(workdir):
    """Return the file with stderr of the last start."""
    return workdir.parent / f"{workdir.name}.stderr"


def wait(processes, seconds=None):
    """Return the exit codes; processes that take longer than `seconds` are killed."""
    ends = None if seconds is None else time.monotonic() + seconds
    codes = []
    for process in processes:
        try:
            codes.append(process.wait(None if ends is None else max(ends - time.monotonic(), 0)))
        except subprocess.TimeoutExpired:
            process.kill()
            codes.append(process.wait())
    return codes


def interrupt_once(workdir, count, rng, missed):
    """Start the run, signal a process at a random time, and wait for all processes to exit."""
    processes = start(workdir, count)
    delay = rng.uniform(5, LONGEST_DELAY_SECONDS)
    target, number = rng.randrange(count), rng.choice((signal.SIGKILL, signal.SIGTERM))
    time.sleep(delay)
    started = " parameters, on " in stderr_file(workdir).read_text()
    limit = LIMIT_SECONDS + (0 if started else JOINING_SECONDS)
    processes[target].send_signal(number)
    before = time.monotonic()
    codes = wait(processes, 2 * limit)
    took = time.monotonic() - before
    phase = "" if started else " while it started"
    print(f"{number.name} to process {target} after {delay:.1f} s{phase}: {codes} after {took:.1f} s", flush=True)
    if not any(codes):
        missed.append(f"the run finished before {number.name} after {delay:.0f} s: make it longer")
    allowed = {0, os.EX_TEMPFAIL, -signal.SIGKILL, -signal.SIGTERM}  # negative if Python has no handlers yet
    if not set(codes) <= allowed:
        missed.append(f"exit codes {codes}")
    if took > limit:
        missed.append(f"processes exited {took:.0f} s after the signal; at most {limit} s is claimed")
    record = {"signal": number.name, "process": target, "delay": delay, "started": started}
    return record | {"codes": codes, "seconds": took}


if __name__ == "__main__":
    main()
