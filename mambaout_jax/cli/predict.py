"""Classify image files with the model of a training run."""

import argparse
import json
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("workdir", help="folder of a training run")
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="JPEG, PNG, WebP, GIF or any other file that Pillow reads"
    )
    parser.add_argument(
        "--weights", choices=("ema", "raw"), help="default: ema, the moving average, if the run has one"
    )
    parser.add_argument("--top", type=_positive, default=5, metavar="N", help="number of classes to print (default: 5)")
    parser.add_argument("--json", action="store_true", help="print a JSON list with an entry per file")


def run(args: argparse.Namespace) -> int:
    """Print the most likely classes of each file; return 2 at the end if a file could not be read."""
    from mambaout_jax.evaluate.predict import classify
    from mambaout_jax.run.workdir import load_run

    answers, failed = [], False
    for answer in classify(load_run(args.workdir, weights=args.weights), args.images, args.top):
        if "error" in answer:
            failed = True
            print(f"error: {answer['file']}: {answer['error']}", file=sys.stderr)
        elif not args.json:
            print(answer["file"])
            for guess in answer["predictions"]:
                print(f"  {100 * guess['probability']:5.1f} %  {guess['class']}", flush=True)
        answers.append(answer)
    if args.json:
        print(json.dumps(answers, indent=2))
    return 2 if failed else 0


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of classes; 1 or more is expected")
    return int(text)
