"""Run prediction on image files, or folders of them, with the weights of a run."""

import argparse
import json
import sys

from mambaout_jax.cli.arguments import LOADING, integer
from mambaout_jax.errors import print_error, printable
from mambaout_jax.process import announced
from mambaout_jax.words import count


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("workdir", help="folder of a run or of imported weights")
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="image in a format that Pillow reads, or folder, for all images in it and its subfolders",
    )
    parser.add_argument("--weights", choices=("ema", "raw"), help="default: ema (moving average) if the run has it")
    parser.add_argument(
        "--top",
        type=integer(1),
        default=5,
        metavar="N",
        help="number of predictions per image, the most probable first (default: 5)",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="also write files for each image, into a folder without inputs: the probabilities as JSON; the label map, "
        "an overlay and the classes; or a picture of the objects and their boxes and masks as JSON",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list with an entry per file")


def run(args: argparse.Namespace) -> int:
    """Print the predictions for each file; return 2 if a file failed, after all others are done."""
    with announced(LOADING):
        from mambaout_jax.data import DataError
        from mambaout_jax.evaluate.predict import OutputFolder, find_files, predict_files
        from mambaout_jax.run.errors import RunError
        from mambaout_jax.run.workdir import restore_run

    files = find_files(args.paths)
    if files.others:
        others = f"{count(len(files.others), 'file')} without an image extension"
        print(printable(f"skipped {others} (first: {files.others[0]})"), file=sys.stderr)
    out = None if args.out is None else OutputFolder(args.out, [*files.images, *files.others])
    with announced("Loading the weights."):
        run = restore_run(args.workdir, weights=args.weights)
    if run.license_notice:
        print(printable(run.license_notice), file=sys.stderr)
    answers, failed = [], False
    for found in predict_files(run, files.images):
        error, written = found.error, []
        if out is not None and not error:
            try:
                written = out.write(found)
            except (DataError, RunError) as fault:
                error = str(fault)
        if error:
            failed = True
            print_error(f"{found.file}: {error}")
            answers.append({"file": found.file, "error": error})
            continue
        files_of = {"files": written} if written else {}
        answers.append({"file": found.file, "predictions": found.prediction.to_json(args.top), **files_of})
        if not args.json:
            lines = [found.file, *(f"  {line}" for line in found.prediction.describe(args.top))]
            lines += [f"  written: {', '.join(written)}"] if written else []
            print("\n".join(map(printable, lines)), flush=True)
    if args.json:
        print(json.dumps(answers, indent=2))
    return 2 if failed else 0
