"""Check whether sequences are long enough to need an SSM: tokens, threshold, FLOPs and memory per stage of a model."""

import argparse
import json
from typing import Any

from mambaout_jax.cli.arguments import LOADING
from mambaout_jax.process import announced
from mambaout_jax.words import count


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="model name (default: the paper's two ViT widths with patch size 16)",
    )
    parser.add_argument(
        "--size",
        nargs="+",
        type=int,
        metavar="PX",
        help="side, or height and width, of the images (default: the model's input size)",
    )
    parser.add_argument("--dataset", metavar="NAME", help="use the image size of imagenet, coco or ade20k")
    parser.add_argument("--out", metavar="DIR", help="write an HTML page, analyze.html, and its plots as PNG into DIR")
    parser.add_argument("--json", action="store_true", help="print all numbers as JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Print a row per stage, and the path of the page if one was requested."""
    with announced(LOADING):
        from mambaout_jax.analyze.ssm_need import analyze
        from mambaout_jax.run.errors import RunError

    if args.out == "":
        raise RunError("--out is empty; expected a folder, such as runs/analysis")
    if args.size is not None and len(args.size) > 2:
        raise RunError(f"--size has {count(len(args.size), 'number')}; expected a side, or a height and a width")
    size = None if args.size is None else (args.size[0], args.size[-1])
    analysis = analyze(args.model, args.dataset, size)
    page = None
    if args.out is not None:
        with announced("Drawing the page."):
            from mambaout_jax.analyze.page import write_page

            page = write_page(analysis, args.out)
    if args.json:
        print(json.dumps(analysis, indent=2))
    else:
        _print(analysis)
        if page is not None:
            print(f"\npage: {page}")
    return 0


HEADS = f"{'':<16}{'D':>5}{'stride':>8}{'tokens L':>11}{'tau = 6D':>10}{'L/6D':>8}   GFLOPs per block and image"
# Title and width of the column for each block.
COLUMNS = {"transformer": ("Transformer", 11), "gated_cnn": ("Gated CNN", 11), "gated_cnn_ssm": ("+ SSM", 9),
           "mamba": ("Mamba", 9)}  # fmt: skip


def _print(analysis: dict[str, Any]) -> None:
    former = None
    columns = {block: column for block, column in COLUMNS.items() if block in analysis["rows"][0]["flops"]}
    names = "".join(f"{name:>{width}}" for name, width in columns.values())
    for row in analysis["rows"]:
        image = row["dataset"], row["height"], row["width"]
        if image != former:
            gap, dataset = "" if former is None else "\n", f"{row['dataset']}, " if row["dataset"] else ""
            print(f"{gap}{dataset}images of {row['height']}x{row['width']} px", HEADS, f"{'':<58}   {names}", sep="\n")
        former = image
        flops = "".join(f"{row['flops'][block]['total'] / 1e9:>{width}.3f}" for block, (_, width) in columns.items())
        print(
            f"{row['stage']:<16}{row['channels']:>5}{row['stride']:>8}{row['tokens']:>11,}{row['threshold']:>10,}"
            f"{row['ratio']:>8.2f}   {flops}   {row['verdict_text']}"
        )
    print(f"\n{analysis['answer']}")
