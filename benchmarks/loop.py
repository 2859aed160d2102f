"""Time what the training loop adds to the bare step on digits.

    python benchmarks/loop.py [--json PATH]

The claim: with batches already in memory the loop takes at most 1.1 times the bare jitted step, and with the input
pipeline, which decodes on the same cores, at most 1.6 times.
"""

import argparse
import importlib.util
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
from _timing import machine, median_ratio, write_json
from ml_collections import ConfigDict

from mambaout_jax.data.prepare import ensure_prepared
from mambaout_jax.run.state import init_state, init_step_metrics
from mambaout_jax.run.workdir import build_model
from mambaout_jax.tasks.classification.mixing import Augmentation
from mambaout_jax.tasks.classification.source import open_source
from mambaout_jax.train import loop
from mambaout_jax.train.program import build_optimizer
from mambaout_jax.train.step import make_train_step

CONFIG = Path(__file__).parents[1] / "configs" / "digits.py"


def main() -> None:
    """Print the table, a line a form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args()

    spec = importlib.util.spec_from_file_location("digits", CONFIG)
    digits = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(digits)
    config = digits.get_config()
    config.num_epochs, config.optim.warmup_epochs, config.eval_every_epochs = args.epochs, 1, args.epochs

    forms = {
        "bare step": bare_step(config, args.epochs),
        "loop, batches in memory": lambda: loop_seconds(config, in_memory=True),
        "loop, pipeline": lambda: loop_seconds(config, in_memory=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(args.rounds):
        for name, measure in forms.items():
            seconds[name].append(measure())

    print(*(f"{name}: {value}" for name, value in machine().items()), sep="\n")
    print(f"\n{'form':<26} {'ms a step':>10} {'images/s':>9} {'over bare':>10}")
    rows = []
    for name, values in seconds.items():
        ratio = median_ratio(values, seconds["bare step"])
        print(f"{name:<26} {1e3 * median(values):10.2f} {config.batch_size / median(values):9.0f} {ratio:10.2f}")
        rows.append({"form": name, "seconds_a_step": median(values), "over_bare": ratio})
    write_json(args.json, {"rows": rows})


def random_batch(config: ConfigDict, rows: int) -> dict[str, np.ndarray]:
    """Draw a batch as the pipeline yields it."""
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (rows, 32, 32, 1), dtype=np.uint8),
        "label": rng.integers(0, 10, rows).astype(np.int32),
    }


def bare_step(config: ConfigDict, epochs: int) -> Callable[[], float]:
    """Build a call that times the jitted step on one batch on the device; it gives seconds a step."""
    model = build_model(config, 10)
    ensure_prepared(config.data.name)
    steps_per_epoch = len(open_source(config.data.name, config.data.train_split)) // config.batch_size
    schedule, optimizer = build_optimizer(config, model, steps_per_epoch)
    step = jax.jit(
        make_train_step(
            model,
            optimizer,
            schedule,
            Augmentation(**config.augment),
            accumulation_steps=1,
            ema_decay=config.optim.ema_decay,
        ),
        donate_argnums=0,
    )
    key, batch = jax.random.key(0), jax.device_put(random_batch(config, config.batch_size))

    def run(steps: int) -> float:
        state, progress = init_state(model, optimizer, key, ema=True), init_step_metrics()
        jax.block_until_ready(state)
        start = time.perf_counter()
        for _ in range(steps):
            state, progress = step(state, progress, batch, key)
        jax.block_until_ready(state)
        return (time.perf_counter() - start) / steps

    run(2)
    return lambda: run(steps_per_epoch * epochs)


def loop_seconds(config: ConfigDict, *, in_memory: bool) -> float:
    """Run the loop and give its median seconds a step, compilation and evaluation left out."""
    rows = random_batch(config, config.batch_size)
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
