"""Predict image files with the weights of a run."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from mambaout_jax.data import DataError
from mambaout_jax.run.workdir import Run
from mambaout_jax.tasks.api import Prediction

# Files beyond this number go through the model in further batches, so that any number of them fits into memory.
MAX_BATCH_SIZE = 32


class FilePrediction(NamedTuple):
    """What was predicted for a file.

    Args:
        prediction: None where there is an error.
        error: a sentence; empty where there is a prediction.
    """

    file: str
    prediction: Prediction | None
    error: str = ""


def predict_files(run: Run, files: Sequence[str]) -> Iterator[FilePrediction]:
    """Predict each file, in order.

    The model is compiled once, for batches of one size; the last is filled up with empty examples.
    """
    predictor = run.task.predictor(run.model, run.labels)
    batch_size = min(len(files), MAX_BATCH_SIZE)
    for start in range(0, len(files), batch_size):
        examples, errors = [], {}
        for row, file in enumerate(files[start : start + batch_size]):
            try:
                examples.append(predictor.prepare(Path(file).read_bytes()))
                continue
            except OSError as error:
                errors[row] = error.strerror or str(error)
            except (DataError, ValueError) as error:
                errors[row] = str(error) or type(error).__name__
            examples.append(predictor.empty())
        if len(errors) < len(examples):
            padded = examples + [predictor.empty()] * (batch_size - len(examples))
            predictions = predictor(run.variables, jax.tree.map(lambda *rows: np.stack(rows), *padded))
        for row, file in enumerate(files[start : start + batch_size]):
            found = errors[row] if row in errors else predictions[row]
            yield FilePrediction(file, None, found) if isinstance(found, str) else FilePrediction(file, found)
