"""Look at the files of a prepared dataset before anything is read from them."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from array_record.python import array_record_module
from etils import epath

from mambaout_jax.data.buckets import REMOTE_SECONDS, is_remote, within_seconds
from mambaout_jax.data.errors import DataError

THREADS = 16
# Without these a reader takes 16 MiB and reads ahead, where the end of the file is all that is asked for.
READER_OPTIONS = {"options": "readahead_buffer_size:0", "file_reader_buffer_size": 32768}


def list_names(folder: epath.Path) -> list[str] | None:
    """List what a folder holds; None if it does not exist.

    Raises:
        DataError: it cannot be read, or does not answer in time.
    """
    try:
        return within_seconds(REMOTE_SECONDS, lambda: _list_names(folder))
    except Exception as error:  # each kind of bucket raises types of its own
        raise DataError(f"{folder} cannot be read ({error})") from error


def check_shards(what: str, folder: epath.Path, shards: Sequence[Any], command: str) -> None:
    """Hold the files of a split against what dataset_info.json says of them.

    Of local files the number of records is read, which a file that was cut short does not tell. In a bucket it would
    cost a request a file, so there they only have to exist.

    Args:
        what: the split, in words.
        shards: TFDS's file instructions.
        command: what prepares the dataset again.

    Raises:
        DataError: files are missing, cut short or of another length.
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
        return f"{file.name} is cut short or damaged: {str(error).partition(';')[0] or 'it has no footer'}"
    return None if found == expected else f"{file.name} holds {found} records where {expected} are expected"


def _list_names(folder: epath.Path) -> list[str] | None:
    return [path.name for path in folder.iterdir()] if folder.exists() else None
