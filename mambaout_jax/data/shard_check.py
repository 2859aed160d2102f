"""Validation of the files of a prepared dataset before they are read."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from array_record.python import array_record_module
from etils import epath

from mambaout_jax.data.errors import DataError
from mambaout_jax.data.record_files import READER_OPTIONS
from mambaout_jax.errors import reason
from mambaout_jax.machine import MachineError, describe_fault
from mambaout_jax.process import within_seconds
from mambaout_jax.storage import REMOTE_SECONDS, is_remote
from mambaout_jax.words import count

THREADS = 16


def list_names(folder: epath.Path) -> list[str] | None:
    """Return the names of the files in a folder, or None if it does not exist.

    Raises:
        MachineError: the folder cannot be read, or not in time.
        DataError: the client of the bucket refuses.
    """
    try:
        return within_seconds(REMOTE_SECONDS, lambda: _list_names(folder))
    except Exception as error:  # each bucket client raises its own types
        if fault := describe_fault(error):
            raise MachineError(f"{folder} cannot be read: {fault}") from error
        raise DataError(f"{folder} cannot be read ({reason(error)})") from error


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
        MachineError: files cannot be opened or read.
    """
    present = set(list_names(folder) or ())
    expected = {epath.Path(shard.filename).name: shard.examples_in_shard for shard in shards}
    faults = [f"{name} is missing" for name in expected if name not in present]
    if not faults and not is_remote(folder):
        with ThreadPoolExecutor(THREADS) as threads:
            suspected = threads.map(lambda item: item if _fault(folder / item[0], item[1]) else None, expected.items())
        # Again one by one: under a low limit of open files a reader reports no records instead of an error.
        faults = [_fault(folder / item[0], item[1]) for item in suspected if item is not None]
    if faults:
        raise DataError(
            f"{len(faults)} of {count(len(expected), 'file')} of {split} in {folder} cannot be read (first: "
            f"{faults[0]}); copy them again, or move the folder away and run: {command}"
        )


def _fault(file: epath.Path, expected: int) -> str | None:
    try:
        reader = array_record_module.ArrayRecordReader(str(file), **READER_OPTIONS)
        found = reader.num_records()
        reader.close()
        if found != expected:
            with file.open("rb"):  # a reader that cannot open its file reports no records
                pass
    except Exception as error:  # ArrayRecord raises its own types
        if fault := describe_fault(error):
            raise MachineError(f"{file} cannot be read: {fault}") from error
        return f"{file.name} is truncated or damaged: {str(error).partition(';')[0] or 'it has no footer'}"
    return None if found == expected else f"{file.name} has {count(found, 'record')}; expected {expected}"


def _list_names(folder: epath.Path) -> list[str] | None:
    return [path.name for path in folder.iterdir()] if folder.exists() else None
