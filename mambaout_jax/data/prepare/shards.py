"""One shard of a dataset: encoded images, written as ArrayRecord and read back.

A finished shard has a manifest, so that a resumed run does not write it again.
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

from mambaout_jax.data.decode import decode_image
from mambaout_jax.data.errors import DataError
from mambaout_jax.machine import MachineError, describe_fault, raise_machine_fault
from mambaout_jax.words import count

WRITER_OPTIONS = "group_size:1"  # required for random access, and the setting of TFDS


class Item(NamedTuple):
    """One image to write: its name, its label, and the file and byte range of its encoded bytes."""

    file_name: str
    label: int
    path: str
    offset: int
    size: int


@dataclasses.dataclass(frozen=True)
class ShardJob:
    """The job of writing one shard, as sent to a worker process."""

    split: str
    file: Path
    manifest: Path
    items: tuple[Item, ...]
    convert: Callable | None
    skip_bad: bool = False

    def digest(self) -> str:
        """Compute a fingerprint of the images without reading them; a finished shard with the same one is kept.

        It covers names, labels, sizes, and when the files last changed, which no copy or move preserves.
        """
        changed = {path: _change_time(path) for path in {item.path for item in self.items}}
        content = [(item.file_name, item.label, item.size, item.offset, changed[item.path]) for item in self.items]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def write_shard(job: ShardJob, advance: Callable[[], None]) -> dict:
    """Write one shard, read it back, and write its manifest.

    A shard with unreadable images is only checked, unless the job skips them.

    Args:
        advance: called after each image.

    Returns:
        The manifest: the number of records, their size in bytes, the number of images per label and of converted
        images, the unreadable images as (name, reason), and the sum of `hash_item`, in hexadecimal digits.

    Raises:
        OSError: the shard cannot be written, or differs when read back.
    """
    temporary = job.file.with_name(f"{job.file.name}.{os.getpid()}.tmp")
    checksums, unreadable, num_converted, content = [], [], 0, 0
    digest = job.digest()
    try:
        with contextlib.closing(array_record_module.ArrayRecordWriter(str(temporary), WRITER_OPTIONS)) as writer:
            for item in job.items:
                data = read_item(item)
                content += hash_item(job.split, item, data)
                try:
                    image, converted = _decode(data, item, job.convert)
                except DataError as error:
                    unreadable.append((item.file_name, str(error)))
                else:
                    record = _serialize(image, item)
                    writer.write(record)
                    checksums.append(zlib.crc32(record))
                    num_converted += converted
                advance()
        manifest = {"unreadable": unreadable, "converted": num_converted, "content": f"{content:x}"}
        if unreadable and not (job.skip_bad and checksums):
            return manifest | {"records": 0}
        manifest |= _read_back(temporary, checksums)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.rename(temporary, job.file)
    except RuntimeError as error:  # raised by ArrayRecord for a full disk and all other errors
        raise MachineError(f"cannot write {job.file}: {describe_fault(error) or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    manifest |= {"digest": digest, "file_bytes": job.file.stat().st_size}
    temporary.write_text(json.dumps(manifest))
    os.rename(temporary, job.manifest)
    return manifest


def read_manifest(job: ShardJob) -> dict | None:
    """Read the manifest of a shard, or return None if the shard is not finished."""
    try:
        manifest = json.loads(job.manifest.read_text())
        same = manifest["digest"] == job.digest() and manifest["file_bytes"] == job.file.stat().st_size
    except (OSError, ValueError, KeyError) as error:
        raise_machine_fault(error, job.manifest)
        return None
    return manifest if same else None


def read_item(item: Item) -> bytes:
    """Read the bytes of one image; fewer than expected if the file is truncated.

    Raises:
        MachineError: the file cannot be read.
    """
    try:
        with open(item.path, "rb", buffering=0) as file:
            file.seek(item.offset)
            return file.read(item.size)
    except OSError as error:
        raise MachineError(describe_fault(error, item.path)) from error


def _change_time(path: str) -> int:
    try:
        return os.stat(path).st_ctime_ns
    except OSError as error:
        raise MachineError(describe_fault(error, path)) from error


def hash_item(split: str, item: Item, data: bytes) -> int:
    """Compute a hash of an image with its split, name and label; sums of it identify sets of images in any order."""
    about = json.dumps([split, item.file_name, item.label, len(data)])
    return int.from_bytes(hashlib.sha256(about.encode() + data).digest(), "big")


def _decode(data: bytes, item: Item, convert: Callable | None) -> tuple[bytes, bool]:
    """Decode an image as training does; return the bytes to store and whether they were converted."""
    if not item.size:
        raise DataError("the file is empty")
    if len(data) != item.size:
        raise DataError(f"the file has {len(data)} of {count(item.size, 'byte')}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about damaged metadata
        decode_image(data)
        stored = convert(data, Image.open(io.BytesIO(data))) if convert else data
    return stored, stored is not data


def _serialize(image: bytes, item: Item) -> bytes:
    example = tf_example_pb2.Example()
    features = example.features.feature
    features["image"].bytes_list.value.append(image)
    features["label"].int64_list.value.append(item.label)
    features["file_name"].bytes_list.value.append(item.file_name.encode())
    return example.SerializeToString(deterministic=True)


def _read_back(file: Path, checksums: Sequence[int]) -> dict:
    """Check each record of a file, and count its records, bytes and labels."""
    labels, num_bytes = collections.Counter(), 0
    with contextlib.closing(array_record_module.ArrayRecordReader(str(file))) as reader:
        if reader.num_records() != len(checksums):
            raise OSError(f"{file} has {reader.num_records()} of {count(len(checksums), 'record')}; check the disk")
        for index, checksum in enumerate(checksums):
            record = reader.read()
            if zlib.crc32(record) != checksum:
                raise OSError(f"record {index} of {file} differs from what was written; check the disk")
            labels[tf_example_pb2.Example.FromString(record).features.feature["label"].int64_list.value[0]] += 1
            num_bytes += len(record)
    return {"records": len(checksums), "bytes": num_bytes, "labels": labels}
