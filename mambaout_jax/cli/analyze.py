"""Check whether sequences are long enough to need an SSM, or measure effective receptive fields."""

import argparse
import json
from pathlib import Path
from typing import Any

from mambaout_jax.cli.arguments import LOADING, integer
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
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="write an HTML page, analyze.html, and its plots as PNG into DIR; with --erf, erf.png",
    )
    parser.add_argument(
        "--erf",
        nargs="+",
        metavar="MODEL_OR_WORKDIR",
        help="measure the effective receptive fields of models (with random weights) or runs instead",
    )
    parser.add_argument(
        "--stage", type=integer(1), metavar="N", help="feature map of --erf, from 1 (default: the last)"
    )
    parser.add_argument("--images", metavar="PATH", nargs="+", help="images for --erf, or folders (default: noise)")
    parser.add_argument(
        "--num-images", type=integer(1), metavar="N", help="number of images for --erf (default: 16 or fewer)"
    )
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
    if args.erf is not None:
        return _measure_fields(args, size)
    if any(value is not None for value in (args.stage, args.images, args.num_images)):
        raise RunError("--stage, --images and --num-images belong to --erf; add --erf MODEL_OR_WORKDIR")
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


def _measure_fields(args: argparse.Namespace, size: tuple[int, int] | None) -> int:
    """Print the areas of receptive fields, and write their picture if one was requested."""
    from mambaout_jax.analyze import receptive_field as erf
    from mambaout_jax.evaluate.predict import find_files
    from mambaout_jax.run.errors import RunError

    if args.model is not None or args.dataset is not None:
        raise RunError("MODEL and --dataset cannot be combined with --erf; name the models after --erf")
    files = None if args.images is None else find_files(args.images).images
    images_of = None if files is None else erf.images_from(files)
    num_images = args.num_images or (16 if files is None else min(16, len(files)))
    stage = None if args.stage is None else args.stage - 1
    fields = []
    for source in args.erf:
        with announced(f"Measuring {source}."):
            fields.append(erf.measure(source, stage=stage, num_images=num_images, img_size=size, images_of=images_of))
    if args.json:
        print(json.dumps([field.to_json() for field in fields], indent=2))
    else:
        width = max(len(field.source) for field in fields)
        images = count(num_images, "image") + (" of noise" if files is None else "")
        print(f"area of the smallest square with a share of the contributions, relative to the image; {images}")
        print(f"{'':<{width}}  stage   pixels", end="")
        print("".join(f"{share:>8.0%}" for share in erf.SHARES), "  weights")
        for field in fields:
            height, across = field.contributions.shape
            areas = "".join(f"{area:>8.1%}" for area in field.areas().values())
            print(f"{field.source:<{width}}  {field.stage + 1:>5} {f'{height}x{across}':>8}{areas}   {field.weights}")
    if args.out is not None:
        path = Path(args.out) / "erf.png"
        erf.draw(fields, path)
        if not args.json:
            print(f"\npicture: {path}")
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
