"""Random access to the records of any TFDS dataset prepared as ArrayRecord.

Datasets are read from their prepared files alone, without their builders and without TensorFlow.
"""

import contextlib
import hashlib
import json
import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import read_only_builder

from mambaout_jax.data.errors import DataError
from mambaout_jax.data.names import (
    DEFAULT_CONFIGS,
    data_root,
    join_name,
    known_datasets,
    parse_name,
    prepare_command,
    unknown_dataset,
)
from mambaout_jax.data.record_files import RecordFiles
from mambaout_jax.data.shard_check import check_shards, list_names
from mambaout_jax.errors import reason
from mambaout_jax.machine import MachineError, describe_fault
from mambaout_jax.words import count

Features = Mapping[str, Any]
FILE_FORMAT = "array_record"
ORIGIN = "origin.json"


class Source(Protocol):
    """Records of one split by index, in a fixed order.

    Sources are picklable; each worker process opens the files itself.

    Attributes:
        name: "dataset" or "dataset/config".
        split: name of a split, or a slice of it such as "train[:90%]".
        fingerprint: equal for equal data, no matter where it was prepared.
        labels: JSON-serializable metadata about the targets, interpreted only by the task that wrote it.

    A source may also have `groups`, an integer for each record: the records of a training batch are then of one group,
    for images whose examples have different shapes.
    """

    name: str
    split: str
    fingerprint: str
    labels: Mapping[str, Any]

    def __len__(self) -> int:
        """Return the number of records."""

    def __getitem__(self, index: int) -> Any:
        """Read a record: any picklable value that the transforms of the task accept.

        Raises:
            DataError: its bytes do not decode.
            MachineError: it cannot be read; this says nothing about the record.
            IndexError: the index is out of range.
        """


class Records:
    """The parsed records of one split: `records[i]` maps feature names to `tf.train.Feature` messages.

    The order is that of the files. Pickling drops `info`, which workers do not need.

    Attributes:
        name: "dataset" or "dataset/config", from the metadata of the dataset.
        split: name of a split, or a slice of it such as "train[:90%]".
        info: `tfds.core.DatasetInfo` with the features; None after unpickling.
    """

    def __init__(self, shards: Sequence[Any], info: tfds.core.DatasetInfo, split: str):
        self._files = RecordFiles(shards)
        self._shards = shards
        self.info = info
        self._origin = read_origin(info.data_dir)
        self.name = f"{info.name}/{info.config_name}" if info.config_name else info.name
        self.split = split

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Features:
        # Faster than the parser of TFDS, which supports every kind of feature.
        return self._files[index].features.feature

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"info": None, "_shards": ()}

    @property
    def features(self) -> Mapping[str, tfds.features.FeatureConnector]:
        """Return the features of the dataset by name, from its metadata."""
        return dict(self.info.features or {})

    @property
    def exif_orientation(self) -> bool:
        """Return whether images are turned upright by their EXIF orientation: those of your own folders are.

        Pipelines behind published accuracies ignore it.
        """
        return bool(self._origin.get("exif_orientation"))

    @property
    def max_size(self) -> tuple[int, int] | None:
        """Return the largest height and the largest width of the images, in pixels; None if they are not recorded."""
        size = self._origin.get("max_size")
        return None if size is None else tuple(size)

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Return the ids of the classes in the annotation file; empty if they are not recorded."""
        return tuple(self._origin.get("category_ids", ()))

    @property
    def portrait(self) -> str | None:
        """Return "1" for each image that is taller than wide and "0" for others; None if that is not recorded."""
        recorded = self._origin.get("portrait")
        if recorded is None:
            return None
        parts = ((recorded[epath.Path(shard.filename).name], shard.skip, shard.take) for shard in self._shards)
        return "".join(text[skip : skip + take] for text, skip, take in parts)

    def fingerprint(self, labels: Sequence[str]) -> str:
        """Return a fingerprint of the data and of `labels`, the names of the classes.

        It covers name, config, version, split, the records of each shard, the size of the splits in bytes and, if this
        package wrote the dataset, the images, so that equal data prepared elsewhere has the same fingerprint.
        """
        content = {
            "shards": [(epath.Path(shard.filename).name, shard.skip, shard.take) for shard in self._shards],
            "bytes": {key: value.num_bytes for key, value in self.info.splits.items()},
            "lengths": {key: list(value.shard_lengths) for key, value in self.info.splits.items()},
            "classes": list(labels),
        }
        if "digest" in self._origin:  # without it, other images of the same sizes are not noticed
            content["digest"] = self._origin["digest"]
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
        return f"{self.info.full_name}:{self.split}:{len(self)}:{digest}"


def read_origin(folder: os.PathLike) -> Mapping[str, Any]:
    """Read what `prepare` recorded on the images of a dataset; empty for datasets of other programs.

    Raises:
        DataError: the file is damaged.
    """
    file = epath.Path(folder) / ORIGIN
    try:
        content = json.loads(file.read_text()) if file.exists() else {}
        if not isinstance(content, dict):
            raise ValueError("expected a JSON object")
    except ValueError as error:
        raise DataError(f"{file} is damaged ({reason(error)}); prepare the dataset again") from error
    return content


@contextlib.contextmanager
def reading_metadata(folder: str | os.PathLike) -> Iterator[None]:
    """Convert the errors of reading the metadata of a prepared dataset with TFDS, in the body of the `with` statement.

    Raises:
        DataError: TFDS cannot read the metadata.
        MachineError: the files cannot be read.
    """
    try:
        yield
    except tfds.core.DatasetNotFoundError:
        raise
    except Exception as error:  # protobuf, json and TFDS raise many types for damaged metadata
        if fault := describe_fault(error, folder):
            raise MachineError(f"the metadata of the dataset in {folder} cannot be read: {fault}") from error
        words = textwrap.shorten(f"{type(error).__name__}: {reason(error)}", 200)
        raise DataError(
            f"the metadata of the dataset in {folder} is damaged or from another version of TFDS ({words}); "
            "copy or prepare it again"
        ) from error


def open_records(name: str, split: str, data_dir: str | None = None) -> Records:
    """Open one split of a prepared dataset.

    Args:
        name: "dataset", "dataset/config" or "dataset/config:version"; without a version, the newest prepared one.
        split: name of a split, or a slice of it such as "train[:90%]".
        data_dir: folder of prepared datasets; None for the default of TFDS.

    Raises:
        DataError: the dataset, split or folder does not exist, or its files are incomplete or in another format.
    """
    builder = _open_builder(name, data_dir)
    info, command = builder.info, prepare_command(name, data_dir)
    if info.file_format.value != FILE_FORMAT:
        raise DataError(
            f"dataset {name!r} is prepared as {info.file_format.value} in {builder.data_dir}; "
            f"move the folder away and run: {command}"
        )
    try:
        shards = info.splits[split].file_instructions
    except (KeyError, ValueError):
        splits = ", ".join(f"{key} ({count(value.num_examples, 'record')})" for key, value in info.splits.items())
        raise DataError(f"dataset {name!r} has no split {split!r}; it has {splits}") from None
    if sum(shard.take for shard in shards) <= 0:
        raise DataError(f"split {split!r} of dataset {name!r} has no records; choose another slice")
    check_shards(f"split {split!r} of dataset {name!r}", builder.data_path, shards, command)
    return Records(shards, info, split)


def _open_builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    dataset, options = parse_name(name)
    root = data_root(data_dir)
    try:
        present = list_names(root)
    except DataError as error:
        raise DataError(f"data_dir {error}") from error
    if present is None and data_dir is not None:
        raise DataError(f"data_dir {data_dir} does not exist; to create it, run: {prepare_command(name, data_dir)}")
    full_name = join_name(dataset, {"config": DEFAULT_CONFIGS.get(dataset), **options})
    try:
        with reading_metadata(root / dataset):
            return read_only_builder.builder_from_files(full_name, data_dir=root)
    except tfds.core.DatasetNotFoundError:
        raise DataError(_explain_missing(name, dataset, root, present or [], data_dir)) from None


def _explain_missing(name: str, dataset: str, root: epath.Path, present: list[str], data_dir: str | None) -> str:
    if dataset not in present and dataset not in known_datasets():
        return unknown_dataset(dataset, present)
    prepared = _find_prepared(root, dataset, depth=2)
    others = f" (prepared there: {', '.join(prepared)})" if prepared else ""
    return f"dataset {name!r} is not prepared in {root}{others}; run: {prepare_command(name, data_dir)}"


def _find_prepared(root: epath.Path, name: str, depth: int) -> list[str]:
    """Return the names of the folders in a folder that contain a dataset, sorted.

    Raises:
        MachineError: a folder cannot be read; TFDS would consider its dataset missing.
    """
    if not (root / name).is_dir():
        return []
    names = list_names(root / name) or []
    if "features.json" in names:
        return [name]
    return [found for inner in sorted(names) if depth for found in _find_prepared(root, f"{name}/{inner}", depth - 1)]
