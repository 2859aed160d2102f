"""Download published weights, evaluate them on ImageNet, and compare with the published accuracy."""

import argparse

from mambaout_jax.cli.arguments import LOADING, number
from mambaout_jax.errors import printable
from mambaout_jax.process import announced
from mambaout_jax.words import count


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("model", metavar="NAME", help="a variant with published weights; `models` lists the variants")
    parser.add_argument("--out", metavar="WORKDIR", help="output folder (default: runs/reproduce/NAME)")
    parser.add_argument("--data-dir", metavar="DIR", help="folder of TFDS datasets (default: that of TFDS)")
    parser.add_argument(
        "--tolerance",
        type=number,
        default=0.1,
        metavar="POINTS",
        help="largest difference in percentage points that counts as reproduced (default: 0.1)",
    )
    parser.add_argument("--force", action="store_true", help="replace the output of an earlier call")


def run(args: argparse.Namespace) -> int:
    """Print both accuracies; return 1 if they differ by more than the tolerance."""
    with announced(LOADING):
        from mambaout_jax.evaluate.reproduce import reproduce

    record = reproduce(
        args.model,
        args.out or f"runs/reproduce/{args.model}",
        data_dir=args.data_dir,
        force=args.force,
        log=lambda sentence: print(printable(sentence), flush=True),
    )
    difference = record["top1"] - record["published_top1"]
    reproduced = abs(difference) <= args.tolerance
    images = count(int(record["count"]), "image")
    sentence = (
        f"{args.model} at {record['size']} px: {record['top1']:.3f} % top-1 of {images}, published "
        f"{record['published_top1']:.3f} %, difference {difference:+.3f}: {'' if reproduced else 'not '}reproduced"
    )
    print(printable(sentence))
    return 0 if reproduced else 1
