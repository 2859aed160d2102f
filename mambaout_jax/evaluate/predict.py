"""Predictions for image files with the weights of a run."""

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

from etils import epath

from mambaout_jax.data import DataError
from mambaout_jax.data.prepare.folders import has_image_extension, list_folder
from mambaout_jax.errors import reason
from mambaout_jax.machine import MachineError, describe_fault, is_exhausted, raise_machine_fault
from mambaout_jax.process import announced, write_bytes_atomically
from mambaout_jax.run.errors import RunError
from mambaout_jax.run.files import find_write_error
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


class FoundFiles(NamedTuple):
    """The files to predict.

    Args:
        images: paths in order.
        others: files in folders whose extension is not that of an image.
    """

    images: list[str]
    others: list[str]


class OutputFolder:
    """A folder with files for each image, named after it.

    Args:
        inputs: the files to predict, and others in their folders. None may be in the folder: files of the folder are
            replaced, and would be inputs of the next prediction.

    Raises:
        RunError: the folder contains an input, or is not writable.
    """

    def __init__(self, path: str, inputs: Iterable[str]):
        self._path = Path(path)
        self._used: set[str] = set()
        if inside := next((file for file in inputs if _is_inside(file, path)), None):
            raise RunError(f"--out {path} contains the input {inside}; choose a folder without inputs")
        if fault := find_write_error(epath.Path(path)):
            raise RunError(f"{path} cannot be written ({fault}); choose another --out")

    def write(self, found: FilePrediction) -> list[str]:
        """Write the files of a prediction, and return their paths; images with the same name get numbers.

        Raises:
            RunError: a file cannot be written.
            DataError: a file of the prediction cannot have the size of the image.
        """
        stem = Path(found.file).stem
        name = next(name for number in itertools.count(1) if (name := self._numbered(stem, number)) not in self._used)
        self._used.add(name)
        paths = []
        try:
            for ending, content in found.prediction.files(Path(found.file).read_bytes()).items():
                paths.append(self._path / f"{name}{ending}")
                write_bytes_atomically(paths[-1], content)
        except OSError as error:
            raise_machine_fault(error, self._path, to_write=True)
            raise RunError(f"its files cannot be written to {self._path} ({reason(error)})") from error
        return list(map(str, paths))

    @staticmethod
    def _numbered(stem: str, number: int) -> str:
        return stem if number == 1 else f"{stem}-{number}"


def _is_inside(file: str, folder: str) -> bool:
    """Return whether a file, or what it links to, is in a folder or its subfolders."""
    real = os.path.realpath(folder)
    places = os.path.realpath(file), os.path.realpath(os.path.dirname(file) or os.curdir)
    return any(Path(place).is_relative_to(real) for place in places)


def find_files(paths: Iterable[str]) -> FoundFiles:
    """List files, and the images in folders and their subfolders, sorted.

    What `prepare folder` ignores is ignored here too. Files in `paths` are listed under any name.

    Raises:
        DataError: a folder has no images, or cannot be read.
    """
    found = FoundFiles([], [])
    for path in paths:
        if not os.path.isdir(path):
            found.images.append(path)
            continue
        files = sorted(_walk(Path(path), set()))
        images = [file for file in files if has_image_extension(file.name)]
        if not images:
            raise DataError(f"{path} has no images in it or its subfolders; expected a folder of images")
        found.images.extend(map(str, images))
        found.others.extend(str(file) for file in files if not has_image_extension(file.name))
    return found


def _walk(folder: Path, visited: set[str]) -> Iterator[Path]:
    """Yield the files below a folder, each folder once even if links form a loop."""
    real = os.path.realpath(folder)
    if real in visited:
        return
    visited.add(real)
    folders, files = list_folder(folder)
    yield from (folder / file.name for file in files)
    for name in folders:
        yield from _walk(folder / name, visited)


def predict_files(run: Run, files: Sequence[str]) -> Iterator[FilePrediction]:
    """Yield a prediction for each file, in order.

    The model is compiled once for one batch size; the last batch is padded with empty examples.
    """
    predictor = run.task.predictor(run.model, run.labels)
    batch_size, compiled = min(len(files), MAX_PREDICTED), False
    for start in range(0, len(files), batch_size):
        examples, errors = [], {}
        for row, file in enumerate(files[start : start + batch_size]):
            try:
                examples.append(predictor.prepare(Path(file).read_bytes()))
                continue
            except OSError as error:
                if is_exhausted(error) or isinstance(error, MachineError):  # the next files would fail too
                    raise MachineError(describe_fault(error, file)) from error
                errors[row] = reason(error)
            except (DataError, ValueError) as error:
                errors[row] = str(error) or type(error).__name__
            examples.append(predictor.empty())
        if len(errors) < len(examples):
            batch = stack_examples(predictor, examples, batch_size)
            with nullcontext() if compiled else announced("Compiling the model for prediction."):
                predictions = predictor(run.variables, batch)
            compiled = True
        for row, file in enumerate(files[start : start + batch_size]):
            found = errors[row] if row in errors else predictions[row]
            yield FilePrediction(file, None, found) if isinstance(found, str) else FilePrediction(file, found)
