"""Time the startup of a run: the import, the compilation of the training step of digits, and tracing a large model.

    python benchmarks/startup.py [--imports] [--json PATH]

The claim: importing the package with its models takes under 3 s, compiling the training step of digits under 20 s, and
tracing the gradient of mambaout_base for 32 images under 10 s.
All figures are measured in fresh processes without a compilation cache. Seconds are wall time and, in parentheses, CPU
time, which depends less on the load of the machine. Missed claims are printed, and the exit code is then 1.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from _timing import check, finish, machine, write_json

ROOT = Path(__file__).parents[1]
IMPORT_SECONDS, COMPILE_SECONDS, TRACE_SECONDS = 3, 20, 10

MODELS = "our models and weights"
# Each imports what the previous one imports and more, except the first, which loads models at their first use.
IMPORTS = {
    "import mambaout_jax": "import mambaout_jax",
    "import jax": "import jax",
    "import flax.nnx": "import flax.nnx",
    MODELS: "import mambaout_jax; mambaout_jax.create_model, mambaout_jax.from_torch",
}
COMPILE = """
import sys, time
from mambaout_jax.run.config_file import read_config
from mambaout_jax.run.signals import StopSignals
from mambaout_jax.train.loop import train
compiled = StopSignals.interruptible
def timed(self, work, sentence):
    start = time.perf_counter()
    compiled(self, work, sentence)
    print(time.perf_counter() - start)
    raise SystemExit
StopSignals.interruptible = timed
train(read_config("configs/digits.py"), sys.argv[1])
"""
# Every process traces; a cache of compiled programs does not avoid it.
TRACE = """
import time
import jax
import mambaout_jax
model = mambaout_jax.create_model("mambaout_base")
images = jax.ShapeDtypeStruct((32, 224, 224, 3), "float32")
gradient = jax.grad(lambda variables, images: model.apply(variables, images).sum())
start = time.perf_counter()
jax.make_jaxpr(gradient)(model.shapes, images)
print(time.perf_counter() - start)
"""


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--imports", action="store_true", help="time only the imports")
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args()
    imports, compiles, traces = {name: [] for name in ("python", *IMPORTS)}, [], []
    with tempfile.TemporaryDirectory() as folder:
        for index in range(args.rounds):
            for name, times in imports.items():
                times.append(_run("-c", IMPORTS.get(name, ""))[:2])
            if not args.imports:
                compiles.append(float(_run("-c", COMPILE, str(Path(folder) / str(index)))[2]))
                traces.append(float(_run("-c", TRACE)[2]))
    print(*(f"{name}: {value}" for name, value in machine().items()), sep="\n")
    missed: list[str] = []
    for name, times in imports.items():
        wall, cpu = (median(seconds) for seconds in zip(*times, strict=True))
        print(f"{name:26} {wall:6.2f} s ({cpu:.2f} s)")
        if name == MODELS:
            check(missed, f"importing them took {wall:.2f} s; {IMPORT_SECONDS} s is claimed", wall < IMPORT_SECONDS)
    for what, times, claim in (
        ("compile the train step", compiles, COMPILE_SECONDS),
        ("trace mambaout_base", traces, TRACE_SECONDS),
    ):
        if times:
            seconds = median(times)
            print(f"{what:26} {seconds:6.2f} s")
            check(missed, f"to {what} took {seconds:.2f} s; {claim} s is claimed", seconds < claim)
    write_json(args.json, {"import_s": imports, "compile_s": compiles, "trace_s": traces})
    finish(missed)


def _run(*arguments: str) -> tuple[float, float, str]:
    """Return the wall time and the CPU time of a fresh process, and what it printed."""
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    start, before = time.perf_counter(), _cpu_time()
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return time.perf_counter() - start, _cpu_time() - before, done.stdout.strip()


def _cpu_time() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
