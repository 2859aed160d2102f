"""Measure how many training images a second the input pipeline of a config gives on this host."""

import argparse
import contextlib
import json
import math

TAKES_CONFIG = "required"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("--workers", type=int, metavar="N", help="processes that decode (default: the config's)")
    parser.add_argument("--seconds", type=_positive, default=20.0, metavar="S", help="time to measure (default: 20)")
    parser.add_argument("--need", type=_positive, metavar="N", help="images a second that the accelerators take")
    parser.add_argument("--json", action="store_true", help="print a JSON object instead of lines")


def run(args: argparse.Namespace) -> int:
    """Print the figures; 1 if they fall short of --need."""
    from mambaout_jax.data.input_speed import measure_input
    from mambaout_jax.data.workers import THREADS, count_cores
    from mambaout_jax.run.config import read_config
    from mambaout_jax.train.inputs import open_batches

    changes = [] if args.workers is None else [f"--config.data.num_workers={args.workers}"]
    config = read_config(args.config, [*args.config_changes, *changes])
    with contextlib.closing(open_batches(config)) as batches:
        speed = measure_input(batches, args.seconds)
    cores = count_cores()
    hands = min(config.data.num_workers or THREADS, cores)
    figures = {
        "dataset": config.data.name,
        "pipeline": config.data.pipeline,
        "workers": config.data.num_workers,
        "cores": cores,
        "batch_size": config.batch_size,
        "batches": speed.num_batches,
        "start_seconds": speed.start_seconds,
        "images_per_second": speed.images_per_second,
        "images_per_second_per_core": speed.images_per_second / hands,
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
            print(_judge(speed.images_per_second, args.need, hands))
    return 0 if enough else 1


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return value


def _describe(figures: dict) -> str:
    hands = f"{figures['workers']} worker processes" if figures["workers"] else "threads of one process"
    return "\n".join(
        [
            f"{figures['dataset']}, pipeline {figures['pipeline']}, {hands} on {figures['cores']} cores, batches of "
            f"{figures['batch_size']}",
            f"first batch      {figures['start_seconds']:8.1f} s",
            f"images           {figures['images_per_second']:8.0f} /s, {figures['images_per_second_per_core']:.0f} /s "
            "a core that works",
            f"wait for a batch {1e3 * figures['batch_seconds_p50']:8.1f} ms median, "
            f"{1e3 * figures['batch_seconds_p99']:.1f} ms 99th percentile, over {figures['batches']} batches",
            f"pixels           {figures['bytes_per_second'] / 2**20:8.1f} MiB/s",
        ]
    )


def _judge(has: float, need: float, hands: int) -> str:
    if has >= need:
        return f"It can feed {need:g} images a second, and {100 * (has / need - 1):.0f} % more."
    more = math.ceil(need / has * hands)
    return (
        f"It cannot feed {need:g} images a second: it gives {100 * has / need:.0f} % of them. At this rate a core, "
        f"{more} cores could; --config.data.pipeline=fast or more --workers may help."
    )
