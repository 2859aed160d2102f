"""Buckets: ask them with a time limit, say what is wrong with them, and put prepared datasets into them."""

import logging
import os
import threading
from collections.abc import Callable
from typing import TypeVar

from etils import epath
from tensorflow_datasets.core import constants
from tqdm import tqdm

from mambaout_jax.data.errors import DataError

T = TypeVar("T")

REMOTE_SECONDS = 30
FILE_FORMAT = "array_record"
METADATA = (constants.FEATURES_FILENAME, constants.DATASET_INFO_FILENAME)  # the last, as TFDS takes them for the whole

# They log with every request, some with a traceback, what they raise as well or can do without.
for _name in ("gcsfs", "google.auth"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


def data_root(data_dir: str | None) -> epath.Path:
    """Give the folder that datasets are prepared in; None for TFDS's own.

    Raises:
        DataError: it is in a kind of storage that is not known.
    """
    try:
        return epath.Path(data_dir or constants.DATA_DIR).expanduser()
    except KeyError as error:
        raise DataError(
            f"data_dir {data_dir} begins with {error}; a local folder, gs:// or s3:// is expected"
        ) from None


def is_remote(path: epath.PathLike) -> bool:
    """Tell a bucket, where files cannot grow, nor be locked, from a path of this machine."""
    return "://" in os.fspath(path)


def explain(error: Exception) -> str:
    """Say in one line, of what any client of a bucket raised, what is wrong, and what helps where that is plain."""
    if isinstance(error, ImportError):
        return "its client is not installed: pip install 'etils[epath-gcs]'"
    if isinstance(error, FileNotFoundError):  # an empty one is found with that right alone
        return "there is no such bucket, or no right to look at it, storage.buckets.get"
    words = " ".join(str(error).split()) or type(error).__name__
    return f"{words}: gcloud auth application-default login" if getattr(error, "code", None) == 401 else words


def upload(folder: epath.Path, target: epath.Path) -> None:
    """Copy a prepared dataset file by file, what makes it look prepared last; files that are there are left alone.

    Objects of a bucket appear when they are complete, so that one of the same size is the same.

    Raises:
        OSError: the bucket cannot be written to.
    """
    files = sorted(folder.iterdir(), key=lambda path: (path.name in METADATA, path.name))
    sizes = {file: file.stat().length for file in files}
    try:
        target.mkdir(parents=True, exist_ok=True)
        present = {path.name for path in target.iterdir()}
        with tqdm(total=sum(sizes.values()), unit="B", unit_scale=True, desc="uploading") as bar:
            for file, size in sizes.items():
                copy = target / file.name
                if file.name not in present or copy.stat().length != size:
                    file.copy(copy, overwrite=True)
                bar.update(size)
    except Exception as error:  # each kind of bucket raises types of its own
        raise OSError(f"uploading {folder} to {target} stopped ({error}); the same command goes on with it") from error


def within_seconds(seconds: float, function: Callable[[], T]) -> T:
    """Call `function` with a time limit: an unreachable bucket would hang for ever.

    Raises:
        TimeoutError: there was no answer in time.
    """
    outcome = []

    def call():
        try:
            outcome.append((function(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:g} s")
    value, error = outcome[0]
    if error is not None:
        raise error
    return value
