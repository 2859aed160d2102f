"""Measure the overhead of the training loop over the bare step, on digits.

    python benchmarks/loop.py [--json PATH]

The claim: the loop takes at most 1.1 times as long as the bare jitted step with batches in memory, and at most 1.6
times as long with the input pipeline, which decodes on the same cores. Missed claims are printed, and the exit code is
then 1.
"""

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from unittest import mock

import jax
import numpy as np
from _timing import check, finish, machine, median_ratio, write_json

from mambaout_jax import distributed
from mambaout_jax.run.config import RunConfig
from mambaout_jax.run.config_file import read_config
from mambaout_jax.run.dataset import open_split
from mambaout_jax.train import loop
from mambaout_jax.train.program import training_program

CONFIG = Path(__file__).parents[1] / "configs" / "digits.py"
# Largest ratio to the time of the bare step, by form.
CLAIMS = {"loop, batches in memory": 1.1, "loop, pipeline": 1.6}


def main() -> None:
    """Print a table with one row per form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args()

    changes = {"num_epochs": args.epochs, "optim.warmup_epochs": 1, "eval_every_epochs": args.epochs}
    config = read_config(str(CONFIG), [f"--config.{key}={value}" for key, value in changes.items()])

    forms = {
        "bare step": bare_step(config),
        "loop, batches in memory": lambda: loop_seconds(config, in_memory=True),
        "loop, pipeline": lambda: loop_seconds(config, in_memory=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(args.rounds):
        for name, measure in forms.items():
            seconds[name].append(measure())

    print(*(f"{name}: {value}" for name, value in machine().items()), sep="\n")
    print(f"\n{'form':<26} {'ms/step':>10} {'images/s':>9} {'over bare':>10}")
    rows, missed = [], []
    for name, values in seconds.items():
        ratio = median_ratio(values, seconds["bare step"])
        print(f"{name:<26} {1e3 * median(values):10.2f} {config.batch_size / median(values):9.0f} {ratio:10.2f}")
        rows.append({"form": name, "seconds_per_step": median(values), "over_bare": ratio})
        if claimed := CLAIMS.get(name):
            check(missed, f"{name}: {ratio:.2f} times the bare step; {claimed} is claimed", ratio <= claimed)
    write_json(args.json, {"rows": rows})
    finish(missed)


def random_batch(rows: int) -> dict[str, np.ndarray]:
    """Draw a batch in the format of the pipeline."""
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (rows, 32, 32, 1), dtype=np.uint8),
        "label": rng.integers(0, 10, rows).astype(np.int32),
    }


def bare_step(config: RunConfig) -> Callable[[], float]:
    """Build a function that times the jitted step on one batch on the device, in seconds per step."""
    task = config.build_task()
    source = open_split(config, task, config.data.train_split)
    model = task.build_model(source.labels)
    mesh = distributed.make_mesh(devices=jax.devices()[:1])
    program = training_program(config, task, model, task.train_transform(model).empty(), len(source), mesh)
    step = jax.jit(program.step, donate_argnums=0)
    key, batch = jax.random.key(0), jax.device_put(random_batch(config.batch_size))

    def run(steps: int) -> float:
        state, metrics = program.init_state(key), program.init_metrics()
        jax.block_until_ready(state)
        start = time.perf_counter()
        for _ in range(steps):
            state, metrics = step(state, metrics, batch, key)
        jax.block_until_ready(state)
        return (time.perf_counter() - start) / steps

    run(2)
    return lambda: run(config.num_epochs * program.steps_per_epoch)


def loop_seconds(config: RunConfig, *, in_memory: bool) -> float:
    """Run the loop and return its median seconds per step, without compilation and evaluation."""
    rows = random_batch(config.batch_size)
    skipped = np.zeros(config.batch_size, np.int32)
    endless = ({**rows, "skipped": skipped} for _ in itertools.count())
    patch = mock.patch.object(loop, "training_batches", return_value=endless) if in_memory else mock.MagicMock()
    with tempfile.TemporaryDirectory() as folder, patch:
        loop.train(config, Path(folder) / "run")
        lines = map(json.loads, (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines())
        speeds = [line["images_per_second"] for line in lines if line["kind"] == "train"]
    return config.batch_size / median(speeds[1:])


if __name__ == "__main__":
    main()
