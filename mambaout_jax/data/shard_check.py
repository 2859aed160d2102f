"""Validation of the files of a prepared dataset before they are read."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from array_record.python import array_record_module
from etils import epath

from mambaout_jax.data.errors import DataError
from mambaout_jax.process import within_seconds
from mambaout_jax.storage import REMOTE_SECONDS, is_remote

THREADS = 16
# By default, a reader allocates 16 MiB and reads ahead, although only the end of the file is needed.
READER_OPTIONS = {"options": "readahead_buffer_size:0", "file_reader_buffer_size": 32768}


def list_names(folder: epath.Path) -> list[str] | None:
    """Return the names of the files in a folder, or None if it does not exist.

    Raises:
        DataError: the folder cannot be read, or not in time.
    """
    try:
        return within_seconds(REMOTE_SECONDS, lambda: _list_names(folder))
    except Exception as error:  # each bucket client raises its own types
        raise DataError(f"{folder} cannot be read ({error})") from error


def check_shards(split: str, folder: epath.Path, shards: Sequence[Any], command: str) -> None:
    """Check the files of a split against dataset_info.json.

    In local files the number of records is read, which fails for truncated files. In a bucket this would cost a request
    per file, so only existence is checked.

    Args:
        split: description of the split, for messages.
        shards: file instructions of TFDS.
        command: the command that prepares the dataset again, for messages.

    Raises:
        DataError: files are missing, truncated or have another number of records.
    """
    present = set(list_names(folder) or ())
    expected = {epath.Path(shard.filename).name: shard.examples_in_shard for shard in shards}
    faults = [f"{name} is missing" for name in expected if name not in present]
    if not faults and not is_remote(folder):
        with ThreadPoolExecutor(THREADS) as threads:
            faults = list(filter(None, threads.map(lambda item: _fault(folder / item[0], item[1]), expected.items())))
    if faults:
        raise DataError(
            f"{len(faults)} of {len(expected)} files of {split} in {folder} cannot be read (first: {faults[0]}); "
            f"copy them again, or move the folder away and run: {command}"
        )


def _fault(file: epath.Path, expected: int) -> str | None:
    try:
        reader = array_record_module.ArrayRecordReader(str(file), **READER_OPTIONS)
        found = reader.num_records()
        reader.close()
    except Exception as error:  # ArrayRecord raises its own types
        return f"{file.name} is truncated or damaged: {str(error).partition(';')[0] or 'it has no footer'}"
    return None if found == expected else f"{file.name} has {found} records; expected {expected}"


def _list_names(folder: epath.Path) -> list[str] | None:
    return [path.name for path in folder.iterdir()] if folder.exists() else None
