"""List the models: parameters, multiply-adds, published ImageNet-1k accuracy, default input size."""

import argparse
import dataclasses
import json
import os
import signal
from typing import Any

from mambaout_jax.cli.arguments import add_plugins
from mambaout_jax.process import SignalHandlers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print a JSON list, also with papers, licenses and weights")
    add_plugins(parser)


def run(args: argparse.Namespace) -> int:
    """Print a row per model."""
    # KeyboardInterrupt may be swallowed where JAX calls back into Python while it traces.
    handlers = SignalHandlers((signal.SIGINT,), lambda *_: os._exit(130))
    handlers.install()
    try:
        _print_models(args)
    finally:
        handlers.restore()
    return 0


def _print_models(args: argparse.Namespace) -> None:
    from mambaout_jax import plugins
    from mambaout_jax.models import list_models

    plugins.load(args.plugin)
    names = list_models()
    if args.json:
        print(json.dumps([_describe(name) for name in names], indent=2))
        return
    width = max(map(len, names))
    print(f"{'model':<{width}}    params       MACs    size  published top-1, %")
    for name in names:
        row = _describe(name)
        top1 = ", ".join(f"{percent:.1f} at {size}" for size, percent in row["top1"].items()) or "-"
        numbers = f"{row['params'] / 1e6:>6.2f} M  {row['macs'] / 1e9:>7.3f} G  {row['size']} px"
        print(f"{name:<{width}}  {numbers}  {top1}", flush=True)


def _describe(name: str) -> dict[str, Any]:
    from mambaout_jax.models import find_family
    from mambaout_jax.models.macs import variant_costs

    family = find_family(name)
    variant = family.variants[name]
    params, macs = variant_costs(name)
    return {
        "name": name,
        "params": params,
        "macs": macs,
        "size": variant.size,
        "top1": {str(size): percent for size, percent in sorted(variant.top1.items())},
        "publication": None if family.publication is None else dataclasses.asdict(family.publication),
        "checkpoint": None if variant.checkpoint is None else dataclasses.asdict(variant.checkpoint),
    }
