"""One file of a dataset: encoded images, written as ArrayRecord and read back.

A finished file leaves a receipt beside the data, by which a later run knows that it need not be written again.
"""

import collections
import contextlib
import dataclasses
import hashlib
import io
import json
import os
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from array_record.python import array_record_module
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from mambaout_jax.data.errors import DataError

WRITER_OPTIONS = "group_size:1"  # what random access needs, and what TFDS writes


class Item(NamedTuple):
    """One image to be written: what it is called, what it shows, and where its bytes lie."""

    file_name: str
    label: int
    path: str
    offset: int
    size: int


@dataclasses.dataclass(frozen=True)
class ShardJob:
    """Hold what a process needs to write one shard."""

    split: str
    file: Path
    receipt: Path
    items: tuple[Item, ...]
    convert: Callable | None

    def digest(self) -> str:
        """Give the fingerprint of names, labels and sizes: a shard that has it need not be written again."""
        content = [(item.file_name, item.label, item.size) for item in self.items]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def write_shard(job: ShardJob, tick: Callable[[], None]) -> dict:
    """Write one shard, read it back, and leave a receipt; a shard with unreadable images is only checked.

    Args:
        tick: called after each image.

    Returns:
        The receipt: the number of records, their bytes, the images of each label, how many were converted, and the
        unreadable ones as pairs of name and reason.

    Raises:
        OSError: the shard cannot be written, or is not what was written when it is read back.
    """
    temporary = job.file.with_name(f"{job.file.name}.{os.getpid()}.tmp")
    checksums, unreadable, num_converted = [], [], 0
    try:
        with contextlib.closing(array_record_module.ArrayRecordWriter(str(temporary), WRITER_OPTIONS)) as writer:
            for item in job.items:
                try:
                    image, converted = _load(item, job.convert)
                except DataError as error:
                    unreadable.append((item.file_name, str(error)))
                else:
                    record = _serialise(image, item)
                    writer.write(record)
                    checksums.append(zlib.crc32(record))
                    num_converted += converted
                tick()
        receipt = {"unreadable": unreadable, "converted": num_converted}
        if unreadable:
            return receipt
        receipt |= _read_back(temporary, checksums)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.rename(temporary, job.file)
    except RuntimeError as error:  # how ArrayRecord says that the disk is full, or anything else
        raise OSError(f"cannot write {job.file} ({error})") from error
    finally:
        temporary.unlink(missing_ok=True)
    receipt |= {"digest": job.digest(), "file_bytes": job.file.stat().st_size}
    temporary.write_text(json.dumps(receipt))
    os.rename(temporary, job.receipt)
    return receipt


def read_receipt(job: ShardJob) -> dict | None:
    """Give the receipt of a shard that is finished, None for any other."""
    try:
        receipt = json.loads(job.receipt.read_text())
        same = receipt["digest"] == job.digest() and receipt["file_bytes"] == job.file.stat().st_size
    except (OSError, ValueError, KeyError):
        return None
    return receipt if same else None


def _load(item: Item, convert: Callable | None) -> tuple[bytes, bool]:
    """Read one image, decode all of it, and give the bytes to store and whether they are others."""
    try:
        with open(item.path, "rb", buffering=0) as file:
            file.seek(item.offset)
            data = file.read(item.size)
        if len(data) != item.size:
            raise DataError(f"{len(data)} of {item.size} bytes are there")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about damaged metadata
            image = Image.open(io.BytesIO(data))
            image.load()
            stored = convert(data, image) if convert else data
    except DataError:
        raise
    except Exception as error:  # Pillow's plugins raise a dozen types on damaged bytes
        raise DataError(f"{type(error).__name__}: {error}") from error
    return stored, stored is not data


def _serialise(image: bytes, item: Item) -> bytes:
    example = tf_example_pb2.Example()
    features = example.features.feature
    features["image"].bytes_list.value.append(image)
    features["label"].int64_list.value.append(item.label)
    features["file_name"].bytes_list.value.append(item.file_name.encode())
    return example.SerializeToString(deterministic=True)


def _read_back(file: Path, checksums: Sequence[int]) -> dict:
    """Count what a file holds, after checking each of its records."""
    labels, num_bytes = collections.Counter(), 0
    with contextlib.closing(array_record_module.ArrayRecordReader(str(file))) as reader:
        if reader.num_records() != len(checksums):
            raise OSError(f"{file} holds {reader.num_records()} records of {len(checksums)}; check the disk")
        for index, checksum in enumerate(checksums):
            record = reader.read()
            if zlib.crc32(record) != checksum:
                raise OSError(f"record {index} of {file} is not what was written to it; check the disk")
            labels[tf_example_pb2.Example.FromString(record).features.feature["label"].int64_list.value[0]] += 1
            num_bytes += len(record)
    return {"records": len(checksums), "bytes": num_bytes, "labels": labels}
