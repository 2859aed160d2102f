"""Classify image files with the model that a training run left in its workdir."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# More images than this go through the model in turns, so that any number of them fits into memory.
MAX_BATCH_SIZE = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("workdir", help="folder of a training run")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="JPEG, PNG, WebP, GIF or what else Pillow reads")
    parser.add_argument("--weights", choices=("ema", "raw"), help="default: ema, the moving average, if one was kept")
    parser.add_argument("--top", type=_positive, default=5, metavar="N", help="classes to print (default: 5)")
    parser.add_argument("--json", action="store_true", help="print a JSON list with an entry for each file")


def run(args: argparse.Namespace) -> int:
    """Print the likeliest classes of each file; 2 if one of them could not be read, after all others are done."""
    from mambaout_jax.train import load_run

    answers, failed = [], False
    for answer in _classify(load_run(args.workdir, weights=args.weights), args.images, args.top):
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
        raise argparse.ArgumentTypeError(f"{text!r} is no number of classes; 1 or more is expected")
    return int(text)


def _classify(run: Any, files: list[str], top: int) -> Iterator[dict[str, Any]]:
    """Give an answer for each file, in order: its predictions, or why it could not be read.

    The model is compiled once, for batches of one size; the last is filled up with zeros.
    """
    import jax
    import numpy as np

    from mambaout_jax.data import DataError, EvalTransform
    from mambaout_jax.train.mixing import normalize

    spec = run.model.input_spec
    view = EvalTransform(
        size=spec.size,
        channels=run.model.in_chans,
        crop_pct=spec.crop_pct,
        crop_mode=spec.crop_mode,
        interpolation=spec.interpolation,
        exif_orientation=True,
    )

    @jax.jit
    def probabilities_of(variables, images):
        return jax.nn.softmax(run.model.apply(variables, normalize(images, spec.mean, spec.std)))

    batch_size = min(len(files), MAX_BATCH_SIZE)
    for start in range(0, len(files), batch_size):
        batch = np.zeros((batch_size, *spec.size, run.model.in_chans), np.uint8)
        errors: dict[int, str] = {}
        for row, file in enumerate(files[start : start + batch_size]):
            try:
                batch[row] = view(Path(file).read_bytes())
            except OSError as error:
                errors[row] = error.strerror or str(error)
            except (DataError, ValueError) as error:
                errors[row] = str(error)
        if len(errors) < batch_size:
            probabilities = np.asarray(probabilities_of(run.variables, batch))
        for row, file in enumerate(files[start : start + batch_size]):
            if row in errors:
                yield {"file": file, "error": errors[row]}
            elif not np.isfinite(probabilities[row]).all():
                yield {"file": file, "error": "the weights give no finite probabilities; they come from a diverged run"}
            else:
                yield {"file": file, "predictions": _top(probabilities[row], run.class_names, top)}


def _top(probabilities: Any, class_names: tuple[str, ...], top: int) -> list[dict[str, Any]]:
    order = (-probabilities).argsort(kind="stable")[:top]
    return [
        {
            "class": class_names[index] if index < len(class_names) else str(index),
            "index": int(index),
            "probability": float(probabilities[index]),
        }
        for index in order
    ]
