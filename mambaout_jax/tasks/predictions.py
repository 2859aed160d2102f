"""The predictions that an evaluation leaves in a workdir, for reports."""

import io
import zipfile
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from etils import epath

from mambaout_jax.data import DataError, Source
from mambaout_jax.errors import reason
from mambaout_jax.machine import raise_machine_fault
from mambaout_jax.tasks.errors import TaskError

AnySource = TypeVar("AnySource", bound=Source)

NO_PREDICTIONS = "No predictions yet; they are written at the end of a run."


def evenly_spaced(indices: np.ndarray, number: int) -> np.ndarray:
    """Return at most `number` of the indices, evenly spaced."""
    last = len(indices) - 1
    return indices[np.unique(np.linspace(0, last, min(number, len(indices))).round().astype(int))]


def read_predictions(workdir: epath.Path, names: Sequence[str]) -> dict[str, np.ndarray] | None:
    """Return arrays of predictions.npz by name, or None if the file does not exist.

    Raises:
        TaskError: the file is damaged or has no such arrays.
    """
    path = workdir / "predictions.npz"
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise_machine_fault(error, path)
        raise TaskError(f"{path} cannot be read ({reason(error)}); evaluate the workdir again") from None


def open_evaluated(open_split: Callable[[], AnySource], fingerprint: str) -> AnySource:
    """Open the split that was evaluated.

    Raises:
        DataError: the dataset prepared here is another one.
    """
    source = open_split()
    if source.fingerprint != fingerprint:
        raise DataError("the dataset prepared here differs from the evaluated one")
    return source
