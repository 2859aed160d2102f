"""Time the startup of a run: the import, and the compilation of the training step of digits.

    python benchmarks/startup.py [--json PATH]

The claim: importing the package with its models takes under 3 s, and compiling the training step of digits under 20 s.
All figures are measured in fresh processes without a compilation cache.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from _timing import machine, write_json

ROOT = Path(__file__).parents[1]

IMPORT = "import mambaout_jax; mambaout_jax.create_model"
COMPILE = """
import sys, time
from mambaout_jax.run.config_file import read_config
from mambaout_jax.run.signals import StopSignals
from mambaout_jax.train.loop import train
compiled = StopSignals.interruptible
def timed(self, work):
    start = time.perf_counter()
    compiled(self, work)
    print(time.perf_counter() - start)
    raise SystemExit
StopSignals.interruptible = timed
train(read_config("configs/digits.py"), sys.argv[1])
"""


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args()
    imports, compiles = [], []
    with tempfile.TemporaryDirectory() as folder:
        for index in range(args.rounds):
            imports.append(_run("-c", IMPORT)[0])
            compiles.append(float(_run("-c", COMPILE, str(Path(folder) / str(index)))[1]))
    print(*(f"{name}: {value}" for name, value in machine().items()), sep="\n")
    print(f"\nimport                       {median(imports):6.2f} s")
    print(f"compile the train step      {median(compiles):6.2f} s")
    write_json(args.json, {"import_s": imports, "compile_s": compiles})


def _run(*arguments: str) -> tuple[float, str]:
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return time.perf_counter() - start, done.stdout.strip()


if __name__ == "__main__":
    main()
