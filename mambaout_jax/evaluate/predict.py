"""Classify image files with the model that a training run left in its workdir."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mambaout_jax.data import DataError
from mambaout_jax.evaluate.evaluation import build_eval_transform
from mambaout_jax.models import cpu_compiler_options
from mambaout_jax.run.workdir import Run
from mambaout_jax.tasks.classification.mixing import normalize

# More images than this go through the model in turns, so that any number of them fits into memory.
MAX_BATCH_SIZE = 32


def classify(run: Run, files: Sequence[str], top: int) -> Iterator[dict[str, Any]]:
    """Give an answer for each file, in order: its predictions, or why it could not be read.

    The model is compiled once, for batches of one size; the last is filled up with zeros.

    Args:
        top: how many classes are given of each, the likeliest first.

    Returns:
        {"file", "predictions": a list of {"class", "index", "probability"}} or {"file", "error"}.
    """
    spec = run.model.input_spec
    view = build_eval_transform(run.config, run.model, exif_orientation=True)

    @partial(jax.jit, compiler_options=cpu_compiler_options())
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
                yield {"file": file, "predictions": _top(probabilities[row], run.class_names or (), top)}


def _top(probabilities: np.ndarray, class_names: Sequence[str], top: int) -> list[dict[str, Any]]:
    order = (-probabilities).argsort(kind="stable")[:top]
    return [
        {
            "class": class_names[index] if index < len(class_names) else str(index),
            "index": int(index),
            "probability": float(probabilities[index]),
        }
        for index in order
    ]
