"""Measure the throughput of a config's input pipeline on this host, in training images per second."""

import argparse
import contextlib
import json
import math

from mambaout_jax.cli.arguments import LOADING, positive_number
from mambaout_jax.process import announced
from mambaout_jax.words import count

TAKES_CONFIG = "required"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--workers", type=int, metavar="N", help="number of decoding processes (default: the config's)")
    parser.add_argument(
        "--seconds", type=positive_number, default=20.0, metavar="S", help="duration of the measurement (default: 20)"
    )
    parser.add_argument(
        "--need", type=positive_number, metavar="N", help="required images per second; exit code 1 if not reached"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def run(args: argparse.Namespace) -> int:
    """Print the results; return 1 if they are below --need."""
    with announced(LOADING):
        from mambaout_jax.data.input_speed import measure_input
        from mambaout_jax.data.workers import THREADS, count_cores
        from mambaout_jax.run.config_file import read_config
        from mambaout_jax.train.inputs import open_batches

    changes = [] if args.workers is None else [f"--config.data.num_workers={args.workers}"]
    config = read_config(args.config, [*args.config_changes, *changes])
    sentence = f"Reading batches for {args.seconds:g} s, after the first one."
    with contextlib.closing(open_batches(config)) as batches, announced(sentence):
        speed = measure_input(batches, args.seconds)
    cores = count_cores()
    active = min(config.data.num_workers or THREADS, cores)
    figures = {
        "dataset": config.data.name,
        **({"pipeline": config.values["data.pipeline"]} if "data.pipeline" in config.values else {}),
        "workers": config.data.num_workers,
        "cores": cores,
        "batch_size": config.batch_size,
        "batches": speed.num_batches,
        "start_seconds": speed.start_seconds,
        "images_per_second": speed.images_per_second,
        "images_per_second_per_core": speed.images_per_second / active,
        "batch_seconds_p50": speed.batch_seconds[0],
        "batch_seconds_p99": speed.batch_seconds[1],
        "bytes_per_second": speed.bytes_per_second,
    }
    enough = args.need is None or speed.images_per_second >= args.need
    if args.json:
        print(json.dumps(figures | ({} if args.need is None else {"need": args.need, "enough": enough}), indent=2))
    else:
        print(_describe(figures))
        if args.need is not None:
            print(_judge(speed.images_per_second, args.need, active, figures.get("pipeline")))
    return 0 if enough else 1


def _describe(figures: dict) -> str:
    workers = count(figures["workers"], "worker process") if figures["workers"] else "threads of one process"
    pipeline = f"pipeline {figures['pipeline']}, " if "pipeline" in figures else ""
    return "\n".join(
        [
            f"{figures['dataset']}, {pipeline}{workers} on {count(figures['cores'], 'core')}, batch size "
            f"{figures['batch_size']}",
            f"first batch      {figures['start_seconds']:8.1f} s",
            f"images           {figures['images_per_second']:8.0f} /s, {figures['images_per_second_per_core']:.0f} /s "
            "per active core",
            f"wait per batch   {1e3 * figures['batch_seconds_p50']:8.1f} ms median, "
            f"{1e3 * figures['batch_seconds_p99']:.1f} ms 99th percentile, over {count(figures['batches'], 'batch')}",
            f"pixels           {figures['bytes_per_second'] / 2**20:8.1f} MiB/s",
        ]
    )


def _judge(has: float, need: float, active: int, pipeline: str | None) -> str:
    if has >= need:
        return f"Enough for {need:g} images/s, with {100 * (has / need - 1):.0f} % to spare."
    cores = count(math.ceil(need / has * active), "core")
    remedy = "--config.data.pipeline=fast or more --workers" if pipeline == "exact" else "more --workers"
    return (
        f"Not enough for {need:g} images/s: {100 * has / need:.0f} %. At this rate per core, it takes {cores}; "
        f"{remedy} may help."
    )
