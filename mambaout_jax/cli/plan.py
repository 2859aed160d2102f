"""Estimate the memory, traffic, step time, hours and cost of a run on TPUs, without a TPU."""

import argparse
import json
import sys
from typing import Any

from mambaout_jax.cli.arguments import integer, number
from mambaout_jax.words import count

TAKES_CONFIG = "required"
WARNING = (
    "These are the compiler's estimates, not measurements. They include only the computation on each chip, without "
    "waits for other chips or images, evaluations and startup."
)
KERNELS = (
    "The compiler has no estimates for Pallas kernels. Each counts as the larger of its scheduled instructions "
    "({schedule:.1f} million cycles in total) and its memory transfers ({bytes:.1f} million)."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--topology", required=True, metavar="TPU:SHAPE", help="TPU slice, such as v5e:4x4")
    parser.add_argument(
        "--chip-hour-price", type=number, metavar="X", help="price of a chip hour; also prints the cost of the run"
    )
    parser.add_argument(
        "--find-batch", action="store_true", help="find the largest microbatch that fits into the memory of a chip"
    )
    parser.add_argument(
        "--num-images",
        type=integer(1),
        metavar="N",
        help="number of training images, if the dataset is not prepared here",
    )
    parser.add_argument(
        "--num-classes", type=integer(1), metavar="N", help="number of classes, if the dataset is not prepared here"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def run(args: argparse.Namespace) -> int:
    """Print the estimates; return 1 if the step does not fit into the memory of a chip."""
    from mambaout_jax.plan.compiler import chip_of
    from mambaout_jax.plan.plan import plan
    from mambaout_jax.plan.program import dataset_of
    from mambaout_jax.run.config_file import read_config

    config = read_config(args.config, args.config_changes)
    chip_of(args.topology)  # report an invalid topology before datasets are opened
    labels = None if args.num_classes is None else config.task.labels_of_size(args.num_classes)
    dataset = dataset_of(config, args.num_images, labels)
    model = config.model["name"]
    print(f"Compiling {model} for {args.topology} (takes minutes)", file=sys.stderr)
    figures = plan(config, args.topology, dataset, chip_hour_price=args.chip_hour_price, find_batch=args.find_batch)
    if args.json:
        print(json.dumps({"config": args.config, "model": model} | figures | {"warning": WARNING}, indent=2))
    else:
        print("\n".join(describe(model, config.model.get("dtype", "float32"), figures)))
    return 0 if figures["fits"] else 1


def describe(model: str, dtype: str, figures: dict[str, Any]) -> list[str]:
    """Return the figures of a plan as lines of text."""
    steps, chips = figures["grad_accum_steps"], figures["chips"]
    accumulation = f" in {count(steps, 'accumulation step')}" if steps > 1 else ""
    lines = [
        f"{model} in {dtype} on {figures['topology']}: {count(chips, 'chip')}, "
        f"batch {figures['batch_size']}, "
        f"{figures['batch_per_chip']} per chip{accumulation}, fsdp {figures['fsdp']}",
        "",
        *_memory(figures),
    ]
    if "largest_microbatch" in figures:
        lines += ["", _largest(figures)]
    if "cycles" in figures:
        lines += ["", *_speed(figures), "", *_top(figures)]
        by_rule = {rule: cycles / 1e6 for rule, cycles in figures["cycles_by_rule"].items()}
        if by_rule["schedule"] or by_rule["bytes"]:
            lines += ["", KERNELS.format(**by_rule)]
        if loops := figures["bounded_loops"]:
            longest = max(most for _, most in loops)
            lines += [
                "",
                f"{count(len(loops), 'loop')} with a data-dependent length, counted at the maximum trip count (up to "
                f"{count(longest, 'iteration')}).",
            ]
        if loops := figures["uncounted_loops"]:
            lines += [
                "",
                f"{count(len(loops), 'loop')} of unknown length, counted once: {', '.join(sorted(set(loops)))}.",
            ]
    return [*lines, "", WARNING]


def _memory(figures: dict[str, Any]) -> list[str]:
    memory = figures["memory"]
    rows = {"parameters": memory["parameters"], "optimizer": memory["optimizer"], "average (EMA)": memory["ema"]}
    rows |= {"teacher": memory["teacher"], "batch": memory["batch"]}
    if "total" in memory:
        rows |= {
            "padding, counters": memory["arguments"] - sum(rows.values()) + memory["results"],
            "activations (temporaries)": memory["temporaries"],
            "program": memory["program"],
            "total": memory["total"],
        }
    lines = [f"{name:<28}{size / 2**20:>10,.1f} MiB" for name, size in rows.items() if size]
    limit = memory["limit"] / 2**20
    if "too_large" in figures:
        return [*lines, f"Does not fit: {figures['too_large']}. Use a smaller config.microbatch_size."]
    share = f"{100 * memory['total'] / memory['limit']:.0f} %"
    return [*lines, f"{'available on a chip':<28}{limit:>10,.1f} MiB: {share} used"]


def _largest(figures: dict[str, Any]) -> str:
    if not figures["largest_microbatch"]:
        return "Not even a microbatch of 8 images fits into the memory of a chip."
    gib = figures["largest_microbatch_memory"] / 2**30
    size = count(figures["largest_microbatch"], "image")
    return f"Largest microbatch per chip: {size}, {gib:.2f} GiB (checked by compiling)."


def _speed(figures: dict[str, Any]) -> list[str]:
    traffic = ", ".join(f"{kind} {size / 2**20:,.1f} MiB" for kind, size in sorted(figures["collective_bytes"].items()))
    lines = [
        f"collectives per step         {traffic or 'none'}",
        f"cycles per step              {figures['cycles'] / 1e6:,.1f} million at {figures['clock'] / 1e9:.2f} GHz",
        f"step                         {1e3 * figures['step_seconds']:,.1f} ms",
        f"images                       {figures['images_per_second']:,.0f} /s",
        f"MFU                          {100 * figures['mfu']:.1f} % of the bfloat16 peak, "
        f"{figures['flops_per_image'] / 1e9:.2f} GFLOPs per image",
        f"full run                     {count(figures['steps'], 'step')}, {figures['hours']:,.2f} hours, "
        f"{figures['chip_hours']:,.1f} chip hours",
    ]
    if "cost" in figures:
        lines.append(f"cost                         {figures['cost']:,.2f}")
    return lines


def _top(figures: dict[str, Any]) -> list[str]:
    lines = [f"{'Mcycles':>9}  {'operation':<32} {'result':<40} source"]
    for row in figures["top"]:
        mark = "" if row["rule"] == "compiler" else f" (by {row['rule']})"
        lines.append(
            f"{row['cycles'] / 1e6:9.2f}  {row['operation']:<32.32} {row['shape']:<40.40} {row['source'][-70:]}{mark}"
        )
    return lines
