"""Checks of the files of a prepared dataset before anything is read from them."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from array_record.python import array_record_module
from etils import epath

from mambaout_jax.data.buckets import REMOTE_SECONDS, is_remote
from mambaout_jax.data.errors import DataError
from mambaout_jax.process import within_seconds

THREADS = 16
# Without these a reader takes 16 MiB and reads ahead, although only the end of the file is needed.
READER_OPTIONS = {"options": "readahead_buffer_size:0", "file_reader_buffer_size": 32768}


def list_names(folder: epath.Path) -> list[str] | None:
    """Return the names of the files in a folder; None if it does not exist.

    Raises:
        DataError: it cannot be read, or does not answer in time.
    """
    try:
        return within_seconds(REMOTE_SECONDS, lambda: _list_names(folder))
    except Exception as error:  # each kind of bucket raises types of its own
        raise DataError(f"{folder} cannot be read ({error})") from error


def check_shards(what: str, folder: epath.Path, shards: Sequence[Any], command: str) -> None:
    """Check the files of a split against dataset_info.json.

    In local files the number of records is read, which fails for truncated ones. In a bucket that would cost a request
    a file, so there they only have to exist.

    Args:
        what: the split, for messages.
        shards: TFDS's file instructions.
        command: the command that prepares the dataset again.

    Raises:
        DataError: files are missing, truncated or of another length.
    """
    present = set(list_names(folder) or ())
    expected = {epath.Path(shard.filename).name: shard.examples_in_shard for shard in shards}
    faults = [f"{name} is missing" for name in expected if name not in present]
    if not faults and not is_remote(folder):
        with ThreadPoolExecutor(THREADS) as threads:
            faults = list(filter(None, threads.map(lambda item: _fault(folder / item[0], item[1]), expected.items())))
    if faults:
        raise DataError(
            f"{what} has {len(faults)} of {len(expected)} files in {folder} that cannot be read (first: {faults[0]}); "
            f"copy them there again, or move that folder away and run: {command}"
        )


def _fault(file: epath.Path, expected: int) -> str | None:
    try:
        reader = array_record_module.ArrayRecordReader(str(file), **READER_OPTIONS)
        found = reader.num_records()
        reader.close()
    except Exception as error:  # ArrayRecord raises types of its own
        return f"{file.name} is truncated or damaged: {str(error).partition(';')[0] or 'it has no footer'}"
    return None if found == expected else f"{file.name} has {found} records; expected {expected}"


def _list_names(folder: epath.Path) -> list[str] | None:
    return [path.name for path in folder.iterdir()] if folder.exists() else None
