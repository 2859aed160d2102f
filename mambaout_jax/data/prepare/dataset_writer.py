"""Write encoded images as a TFDS dataset of ArrayRecord, shard by shard, in processes of their own.

A run that was stopped goes on where it was, and the dataset gets its name by one rename when every shard and the
metadata are there.
"""

import collections
import contextlib
import dataclasses
import fcntl
import hashlib
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.utils import shard_utils
from tqdm import tqdm

from mambaout_jax.data.buckets import FILE_FORMAT
from mambaout_jax.data.errors import DataError
from mambaout_jax.data.prepare.shard_workers import run_jobs
from mambaout_jax.data.prepare.shards import Item, ShardJob, read_receipt, write_shard


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Hold what is to be written.

    Attributes:
        encoding: "jpeg" when every image is one, None when they are of any kind.
        convert: gives the bytes to be stored from an image's bytes and the image that Pillow decoded from them; a
            function of a module, as it goes to other processes. Unset, bytes are stored as they are.
        about: further arguments of `tfds.core.DatasetInfo`.
    """

    name: str
    version: str
    class_names: tuple[str, ...]
    splits: dict[str, list[Item]]
    encoding: str | None = None
    convert: Callable[[bytes, Image.Image], bytes] | None = None
    about: dict = dataclasses.field(default_factory=dict)


class Written(NamedTuple):
    """Tell what the files of a dataset hold, as read back from them."""

    images_per_class: dict[str, list[int]]
    num_converted: int


def read_info(folder: str | os.PathLike) -> tfds.core.DatasetInfo:
    """Read the metadata of a prepared dataset.

    Raises:
        DataError: TFDS cannot read it.
        PermissionError: nobody may.
    """
    try:
        return tfds.builder_from_directory(folder).info
    except PermissionError:
        raise
    except Exception as error:  # of protobuf, json and TFDS: they raise a dozen types on damaged metadata
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 200)
        raise DataError(
            f"the metadata of the dataset in {folder} is damaged, or of another version of TFDS ({reason}); "
            "copy or prepare it again"
        ) from error


@contextlib.contextmanager
def open_workspace(target: Path) -> Iterator[Path]:
    """Give the folder in which the dataset `target` is made, for one run at a time.

    It stays when the run does not finish, and goes when the dataset is whole or nothing was written.

    Raises:
        DataError: another run has it.
    """
    folder = target.with_name(f"{target.name}.incomplete")
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / "lock"
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                raise FileNotFoundError(lock)
        except (BlockingIOError, FileNotFoundError):  # held, or removed by a run that ended a moment ago
            raise DataError(f"another run is preparing {target}; wait for its end and try again") from None
        try:
            yield folder
        finally:
            if target.exists() or not any(path.is_file() and path != lock for path in folder.rglob("*")):
                shutil.rmtree(folder)
                with contextlib.suppress(OSError):  # other versions are there
                    target.parent.rmdir()


def write_dataset(dataset: Dataset, workspace: Path, target: Path, workers: int) -> Written:
    """Write a dataset below `workspace`, read it back, and rename it to `target`.

    The order is that of the names' hashes: a slice of a split is a fair sample of it, and equal images prepared
    anywhere are equal file for file. Every image is decoded once.

    Args:
        workers: processes that write shards; one is this process.

    Raises:
        DataError: images are empty or cannot be decoded, or the disk is too small.
        OSError: writing failed.
    """
    everything = [item for items in dataset.splits.values() for item in items]
    _refuse("empty", [(item.file_name, "0 bytes") for item in everything if not item.size], len(everything))
    jobs = list(_plan(dataset, workspace))
    receipts = {job.file: receipt for job in jobs if (receipt := read_receipt(job))}
    _sweep(workspace, jobs, receipts)
    missing = [job for job in jobs if job.file not in receipts]
    _check_space(workspace, missing)
    if receipts:
        tqdm.write(f"{len(receipts)} of {len(jobs)} files are there from an earlier run", file=sys.stderr)
    num_done = sum(receipt["records"] for receipt in receipts.values())
    with tqdm(total=len(everything), initial=num_done, unit=" images", desc=dataset.name) as bar:
        receipts |= dict(zip([job.file for job in missing], run_jobs(write_shard, missing, workers, bar), strict=True))
    unreadable = [tuple(bad) for job in jobs for bad in receipts[job.file]["unreadable"]]
    _refuse("not images that Pillow decodes", unreadable, len(everything))
    _write_metadata(dataset, jobs, receipts)
    os.rename(jobs[0].file.parent, target)
    histograms = {split: collections.Counter() for split in dataset.splits}
    for job in jobs:
        histograms[job.split].update({int(label): count for label, count in receipts[job.file]["labels"].items()})
    return Written(
        {split: [counts[label] for label in range(len(dataset.class_names))] for split, counts in histograms.items()},
        sum(receipt["converted"] for receipt in receipts.values()),
    )


def _plan(dataset: Dataset, workspace: Path) -> Iterator[ShardJob]:
    data, receipts = workspace / "data", workspace / "receipts"
    for folder in (data, receipts):
        folder.mkdir(exist_ok=True)
    for split, items in dataset.splits.items():
        template = tfds.core.ShardedFileTemplate(
            data_dir=data, dataset_name=dataset.name, split=split, filetype_suffix=FILE_FORMAT
        )
        items = sorted(items, key=lambda item: (hashlib.sha256(item.file_name.encode()).digest(), item))
        num_shards = shard_utils.ShardConfig.calculate_number_shards(sum(item.size for item in items), len(items))
        ends = shard_utils.get_shard_boundaries(len(items), num_shards)
        for index, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            file = Path(template.sharded_filepath(shard_index=index, num_shards=num_shards))
            yield ShardJob(split, file, receipts / f"{file.name}.json", tuple(items[start:end]), dataset.convert)


def _sweep(workspace: Path, jobs: Sequence[ShardJob], receipts: dict) -> None:
    keep = {path for job in jobs if job.file in receipts for path in (job.file, job.receipt)}
    for folder in ("data", "receipts"):
        for path in (workspace / folder).iterdir():
            if path not in keep:
                path.unlink()


def _check_space(workspace: Path, jobs: Sequence[ShardJob]) -> None:
    needed = sum(item.size for job in jobs for item in job.items)
    free = shutil.disk_usage(workspace).free
    if needed > free:
        raise DataError(
            f"{workspace.parent} needs {needed / 1e9:.1f} GB and its disk has {free / 1e9:.1f} GB free; "
            "make room, or name another folder with --data-dir"
        )


def _write_metadata(dataset: Dataset, jobs: Sequence[ShardJob], receipts: dict) -> None:
    data = jobs[0].file.parent
    template = tfds.core.ShardedFileTemplate(data_dir=data, dataset_name=dataset.name, filetype_suffix=FILE_FORMAT)
    splits = []
    for split in dataset.splits:
        own = [receipts[job.file] for job in jobs if job.split == split]
        splits.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[receipt["records"] for receipt in own],
                num_bytes=sum(receipt["bytes"] for receipt in own),
                filename_template=template.replace(split=split),
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=data,
        features={
            "image": tfds.features.Image(encoding_format=dataset.encoding),
            "label": tfds.features.ClassLabel(names=dataset.class_names),
            "file_name": tfds.features.Text(),
        },
        split_infos=splits,
        version=dataset.version,
        check_data=False,
        supervised_keys=("image", "label"),
        **dataset.about,
    )


def _refuse(fault: str, bad: Sequence[tuple[str, str]], total: int) -> None:
    if bad:
        name, reason = bad[0]
        raise DataError(
            f"{len(bad)} of {total} files are {fault} (first: {name}: {reason}); replace or remove them and run again"
        )
