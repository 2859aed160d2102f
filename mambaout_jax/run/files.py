"""Files of a run, on disk or in a bucket."""

import os
from collections.abc import Mapping

import jax
import numpy as np
from etils import epath

from mambaout_jax.errors import reason
from mambaout_jax.machine import raise_machine_fault
from mambaout_jax.process import within_seconds, write_text_atomically
from mambaout_jax.storage import REMOTE_SECONDS, explain, is_remote


def find_write_error(folder: epath.Path) -> str:
    """Create a folder if necessary and try to write into it; return the error message, empty on success.

    A bucket that does not respond in time counts as an error.

    Raises:
        MachineError: the disk is full or fails.
    """
    probe = folder / f".writable.{jax.process_index()}.{os.getpid()}"

    def write() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()

    if is_remote(folder):
        try:
            within_seconds(REMOTE_SECONDS, write)
        except Exception as error:  # each client of a bucket raises its own types
            return explain(error)
        return ""
    try:
        write()
    except OSError as error:
        raise_machine_fault(error, folder, to_write=True)
        return reason(error)
    return ""


def write_atomically(path: epath.Path, text: str) -> None:
    """Write a text file atomically; writes to a bucket always are."""
    if is_remote(path):
        path.write_bytes(text.encode())  # write_text would use the machine's default encoding
        return
    write_text_atomically(path, text)


def write_arrays(path: epath.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name as an npz file."""
    with path.open("wb") as file:
        np.savez(file, **arrays)
