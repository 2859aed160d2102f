"""Tell what a run would need of TPUs before they are paid for: memory, traffic, step time, hours, money."""

import argparse
import json
import math
import sys
from typing import Any

TAKES_CONFIG = "required"
WARNING = (
    "These are the compiler's estimates, not measurements. Time is that of the chips' own work: what they wait for "
    "each other, for the hosts' images, in evaluations and at starts comes on top."
)
KERNELS = (
    "Of Pallas kernels the compiler has no estimate. They count as the larger of their scheduled instructions "
    "({schedule:.1f} million cycles, where those are more) and their bytes over the memory's bandwidth ({bytes:.1f} "
    "million)."
)
UNCOUNTED = "Loops that do not tell how often they run count once, {} of them: {}."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("--topology", required=True, metavar="TPU:SHAPE", help="the slice, such as v5e:4x4")
    parser.add_argument("--hours-price", type=_price, metavar="X", help="price of one chip for an hour, for the money")
    parser.add_argument(
        "--find-batch", action="store_true", help="find the most images that a chip can compute at once"
    )
    parser.add_argument("--num-images", type=_count, metavar="N", help="of the training split, where it is not known")
    parser.add_argument("--num-classes", type=_count, metavar="N", help="likewise")
    parser.add_argument("--json", action="store_true", help="print a JSON object instead of lines")


def run(args: argparse.Namespace) -> int:
    """Print the figures; 1 if the step does not fit into a chip."""
    from mambaout_jax.plan.compiler import chip_of
    from mambaout_jax.plan.plan import dataset_of, plan
    from mambaout_jax.run.config import read_config

    config = read_config(args.config, args.config_changes)
    chip_of(args.topology)  # what was typed wrong is told before datasets are opened
    dataset = dataset_of(config.data, args.num_images, args.num_classes)
    print(f"compiling {config.model.name} for {args.topology}, which takes minutes", file=sys.stderr)
    figures = plan(config, args.topology, dataset, chip_hour_price=args.hours_price, find_batch=args.find_batch)
    if args.json:
        print(
            json.dumps({"config": args.config, "model": config.model.name} | figures | {"warning": WARNING}, indent=2)
        )
    else:
        print("\n".join(describe(config.model.name, config.model.dtype, figures)))
    return 0 if figures["fits"] else 1


def _price(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no price; a number from 0 is expected")
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive whole number")
    return int(text)


def describe(model: str, dtype: str, figures: dict[str, Any]) -> list[str]:
    """Word the figures of a plan."""
    parts = f" in {figures['parts']} parts" if figures["parts"] > 1 else ""
    lines = [
        f"{model} in {dtype} on {figures['topology']}: {figures['chips']} chips, batch {figures['batch_size']}, "
        f"{figures['batch_per_chip']} a chip{parts}, fsdp {figures['fsdp']}",
        "",
        *_memory(figures),
    ]
    if "largest_batch_at_once" in figures:
        lines += ["", _largest(figures)]
    if "cycles" in figures:
        lines += ["", *_speed(figures), "", *_top(figures)]
        by_rule = {rule: cycles / 1e6 for rule, cycles in figures["cycles_by_rule"].items()}
        if by_rule["schedule"] or by_rule["bytes"]:
            lines += ["", KERNELS.format(**by_rule)]
        if loops := figures["uncounted_loops"]:
            lines += ["", UNCOUNTED.format(len(loops), ", ".join(sorted(set(loops))))]
    return [*lines, "", WARNING]


def _memory(figures: dict[str, Any]) -> list[str]:
    memory = figures["memory"]
    rows = {"parameters": memory["parameters"], "optimizer": memory["optimizer"], "their average (EMA)": memory["ema"]}
    rows["batch"] = memory["batch"]
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
        return [*lines, f"It does not fit: {figures['too_large']}. A smaller config.microbatch_size helps."]
    share = f"{100 * memory['total'] / memory['limit']:.0f} %"
    return [*lines, f"{'of':<28}{limit:>10,.1f} MiB that a program may use of a chip's memory: {share}"]


def _largest(figures: dict[str, Any]) -> str:
    if not figures["largest_batch_at_once"]:
        return "No batch fits into a chip, not even of 8 images."
    gib = figures["largest_batch_memory"] / 2**30
    return (
        f"Most images that a chip computes at once: {figures['largest_batch_at_once']}, which take {gib:.2f} GiB; "
        "compiled to check."
    )


def _speed(figures: dict[str, Any]) -> list[str]:
    traffic = ", ".join(f"{kind} {size / 2**20:,.1f} MiB" for kind, size in sorted(figures["collective_bytes"].items()))
    lines = [
        f"bytes to collectives, a step {traffic or 'none'}",
        f"cycles of a step             {figures['cycles'] / 1e6:,.1f} million at {figures['clock'] / 1e9:.2f} GHz",
        f"step                         {1e3 * figures['step_seconds']:,.1f} ms",
        f"images                       {figures['images_per_second']:,.0f} /s",
        f"MFU                          {100 * figures['mfu']:.1f} % of the peak in bfloat16, "
        f"{figures['flops_per_image'] / 1e9:.2f} GFLOPs an image",
        f"whole schedule               {figures['steps']:,} steps, {figures['hours']:,.2f} hours, "
        f"{figures['chip_hours']:,.1f} chip hours",
    ]
    if "money" in figures:
        lines.append(f"price                        {figures['money']:,.2f}")
    return lines


def _top(figures: dict[str, Any]) -> list[str]:
    lines = [f"{'Mcycles':>9}  {'operation':<32} {'result':<40} source"]
    for row in figures["top"]:
        mark = "" if row["rule"] == "compiler" else f" (by {row['rule']})"
        lines.append(
            f"{row['cycles'] / 1e6:9.2f}  {row['operation']:<32.32} {row['shape']:<40.40} {row['source'][-70:]}{mark}"
        )
    return lines
