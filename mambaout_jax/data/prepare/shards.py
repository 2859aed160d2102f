"""One shard of a dataset: encoded images, written as ArrayRecord and read back.

A finished shard has a manifest, so that a resumed run does not write it again.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from array_record.python import array_record_module
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from mambaout_jax.data.decode import decode_image
from mambaout_jax.data.errors import DataError
from mambaout_jax.data.label_maps import IGNORED
from mambaout_jax.machine import MachineError, describe_fault, raise_machine_fault
from mambaout_jax.words import count

WRITER_OPTIONS = "group_size:1"  # required for random access, and the setting of TFDS


class LabelMapFile(NamedTuple):
    """The file of a label map, and its size in bytes."""

    path: str
    size: int


class Annotations(NamedTuple):
    """The annotated objects of an image.

    Args:
        image_id: id of the image in the annotation file.
        height, width: of the image, in pixels.
        text: JSON list of the annotations, as COCO has them.
        classes: of the objects.
        has_objects: whether any of them is not a crowd.
    """

    image_id: int
    height: int
    width: int
    text: str
    classes: tuple[int, ...]
    has_objects: bool


class Item(NamedTuple):
    """One image to write: its name, its label, and the file and byte range of its encoded bytes.

    Args:
        label: class of the image; -1 if it has a label map or objects.
        label_map: file with a class for each pixel; None for a label.
        annotations: its objects; None for other images.
    """

    file_name: str
    label: int
    path: str
    offset: int
    size: int
    label_map: LabelMapFile | None = None
    annotations: Annotations | None = None

    @property
    def about(self) -> list[Any]:
        """Return what a hash of the item covers, besides its name and its files."""
        return [self.label] if self.annotations is None else [self.label, *self.annotations[:4]]


def split_items(items: list[Item], fraction: float) -> tuple[list[Item], list[Item]]:
    """Split images into two parts, of which the second has a fraction of them, the same on every machine.

    Raises:
        DataError: there is only one image.
    """
    if len(items) < 2:
        raise DataError("there is one image; --val requires two or more")
    ordered = sorted(items, key=lambda item: hashlib.sha256(item.file_name.encode()).digest())
    number = min(max(round(fraction * len(ordered)), 1), len(ordered) - 1)
    return ordered[number:], ordered[:number]


@dataclasses.dataclass(frozen=True)
class ShardJob:
    """The job of writing one shard, as sent to a worker process."""

    split: str
    file: Path
    manifest: Path
    items: tuple[Item, ...]
    convert: Callable | None
    skip_bad: bool = False
    read_labels: Callable | None = None
    exif_orientation: bool = False

    def digest(self) -> str:
        """Compute a fingerprint of the content without reading it; a finished shard with the same one is kept.

        It covers names, labels, sizes, when the files last changed, which no copy or move preserves, and how they are
        decoded and converted.
        """
        label_maps = [item.label_map for item in self.items if item.label_map]
        changed = {path: _change_time(path) for path in {part.path for part in (*self.items, *label_maps)}}
        content = [
            (item.file_name, *item.about, item.size, item.offset, changed[item.path])
            + ((item.label_map.size, changed[item.label_map.path]) if item.label_map else ())
            for item in self.items
        ]
        how = [_identify(self.convert), _identify(self.read_labels), self.exif_orientation]
        return hashlib.sha256(json.dumps([content, how]).encode()).hexdigest()


def _identify(function: Callable | None) -> list | None:
    """Return the name of a function, and its arguments if it is a partial."""
    if isinstance(function, functools.partial):
        return [*_identify(function.func), function.keywords]
    return function and [function.__module__, function.__qualname__]


def write_shard(job: ShardJob, advance: Callable[[], None]) -> dict:
    """Write one shard, read it back, and write its manifest.

    A shard with unreadable images is only checked, unless the job skips them.

    Args:
        advance: called after each image.

    Returns:
        The manifest: the number of records, their size in bytes, the number of images per label and of converted
        images, the largest height and width, the unreadable images and label maps as (name, reason), the label maps
        with only ignored pixels, "0" or "1" for each image, which is 1 if it is taller than wide, and the sum of
        `hash_item`, in hexadecimal digits.

    Raises:
        OSError: the shard cannot be written, or differs when read back.
    """
    temporary = job.file.with_name(f"{job.file.name}.{os.getpid()}.tmp")
    checksums, unreadable, unlabeled, portrait, num_converted, content = [], [], [], [], 0, 0
    labels, max_size = collections.Counter(), [0, 0]
    digest = job.digest()
    try:
        with contextlib.closing(array_record_module.ArrayRecordWriter(str(temporary), WRITER_OPTIONS)) as writer:
            for item in job.items:
                data = read_item(item)
                mask = None if item.label_map is None else read_label_map(item)
                content += hash_item(job.split, item, data, mask)
                classes, name = {item.label}, item.file_name
                try:
                    image, size, converted = _decode(data, item, job)
                    if mask is not None:
                        name = item.label_map.path
                        _check_complete(mask, item.label_map.size)
                        mask, classes = job.read_labels(mask, data, size)
                    if item.annotations is not None:
                        _check_annotated_size(item.annotations, size, upright=job.exif_orientation)
                        classes = set(item.annotations.classes)
                except DataError as error:
                    unreadable.append((name, str(error)))
                else:
                    record = _serialize(image, item, mask)
                    writer.write(record)
                    labels.update(classes)
                    portrait.append("1" if size[0] > size[1] else "0")
                    max_size = [max(pair) for pair in zip(max_size, size, strict=True)]
                    checksums.append(zlib.crc32(record))
                    num_converted += converted
                    if mask is not None and classes == {IGNORED}:
                        unlabeled.append(name)
                advance()
        manifest = {"unreadable": unreadable, "unlabeled": unlabeled, "converted": num_converted}
        manifest["content"] = f"{content:x}"
        if unreadable and not (job.skip_bad and checksums):
            return manifest | {"records": 0}
        manifest |= _read_back(temporary, checksums) | {"labels": labels, "max_size": max_size}
        manifest["portrait"] = "".join(portrait)
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


def read_label_map(item: Item) -> bytes:
    """Read the bytes of the label map of an image.

    Raises:
        MachineError: the file cannot be read.
    """
    return read_item(item._replace(path=item.label_map.path, offset=0, size=item.label_map.size))


def _change_time(path: str) -> int:
    try:
        return os.stat(path).st_ctime_ns
    except OSError as error:
        raise MachineError(describe_fault(error, path)) from error


def hash_item(split: str, item: Item, data: bytes, label_map: bytes | None = None) -> int:
    """Compute a hash of an image with its split, name and labels; sums of it identify sets of images in any order."""
    about = json.dumps([split, item.file_name, *item.about, len(data)])
    return int.from_bytes(hashlib.sha256(about.encode() + data + (label_map or b"")).digest(), "big")


def _decode(data: bytes, item: Item, job: ShardJob) -> tuple[bytes, tuple[int, int], bool]:
    """Decode an image as training does; return the bytes to store, (height, width), and whether they were converted."""
    _check_complete(data, item.size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about damaged metadata
        width, height = decode_image(data, exif_orientation=job.exif_orientation).size
        stored = job.convert(data, Image.open(io.BytesIO(data))) if job.convert else data
    return stored, (height, width), stored is not data


def _check_annotated_size(annotations: Annotations, size: tuple[int, int], *, upright: bool) -> None:
    if (annotations.height, annotations.width) != size:
        turned = " when turned upright" if upright else ""
        raise DataError(
            f"image {annotations.image_id} is {size[0]}x{size[1]} (height x width){turned}, and "
            f"{annotations.height}x{annotations.width} by its annotations"
        )


def _check_complete(data: bytes, size: int) -> None:
    if not size:
        raise DataError("the file is empty")
    if len(data) != size:
        raise DataError(f"the file has {len(data)} of {count(size, 'byte')}")


def _serialize(image: bytes, item: Item, label_map: bytes | None) -> bytes:
    example = tf_example_pb2.Example()
    features = example.features.feature
    features["image"].bytes_list.value.append(image)
    if (annotations := item.annotations) is not None:
        features["image_info"].int64_list.value.extend([annotations.image_id, annotations.height, annotations.width])
        features["annotations"].bytes_list.value.append(annotations.text.encode())
        features["categories"].int64_list.value.extend(annotations.classes)
    elif label_map is None:
        features["label"].int64_list.value.append(item.label)
    else:
        features["label_map"].bytes_list.value.append(label_map)
    features["file_name"].bytes_list.value.append(item.file_name.encode())
    return example.SerializeToString(deterministic=True)


def _read_back(file: Path, checksums: Sequence[int]) -> dict:
    """Check each record of a file, and count its records and bytes."""
    num_bytes = 0
    with contextlib.closing(array_record_module.ArrayRecordReader(str(file))) as reader:
        if reader.num_records() != len(checksums):
            raise OSError(f"{file} has {reader.num_records()} of {count(len(checksums), 'record')}; check the disk")
        for index, checksum in enumerate(checksums):
            record = reader.read()
            if zlib.crc32(record) != checksum:
                raise OSError(f"record {index} of {file} differs from what was written; check the disk")
            num_bytes += len(record)
    return {"records": len(checksums), "bytes": num_bytes}
