"""Predictions for image files with the weights of a run."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mambaout_jax.data import DataError
from mambaout_jax.machine import MachineError, describe_fault, is_exhausted
from mambaout_jax.run.workdir import Run
from mambaout_jax.tasks.api import MAX_PREDICTED, Prediction, stack_examples


class FilePrediction(NamedTuple):
    """The prediction for a file.

    Args:
        prediction: None after an error.
        error: the error message; empty for none.
    """

    file: str
    prediction: Prediction | None
    error: str = ""


def predict_files(run: Run, files: Sequence[str]) -> Iterator[FilePrediction]:
    """Yield a prediction for each file, in order.

    The model is compiled once for one batch size; the last batch is padded with empty examples.
    """
    predictor = run.task.predictor(run.model, run.labels)
    batch_size = min(len(files), MAX_PREDICTED)
    for start in range(0, len(files), batch_size):
        examples, errors = [], {}
        for row, file in enumerate(files[start : start + batch_size]):
            try:
                examples.append(predictor.prepare(Path(file).read_bytes()))
                continue
            except OSError as error:
                if is_exhausted(error) or isinstance(error, MachineError):  # the next files would fail too
                    raise MachineError(describe_fault(error, file)) from error
                errors[row] = error.strerror or str(error)
            except (DataError, ValueError) as error:
                errors[row] = str(error) or type(error).__name__
            examples.append(predictor.empty())
        if len(errors) < len(examples):
            predictions = predictor(run.variables, stack_examples(predictor, examples, batch_size))
        for row, file in enumerate(files[start : start + batch_size]):
            found = errors[row] if row in errors else predictions[row]
            yield FilePrediction(file, None, found) if isinstance(found, str) else FilePrediction(file, found)
