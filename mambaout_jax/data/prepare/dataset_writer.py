"""Writing of encoded images as a TFDS dataset in ArrayRecord, shard by shard, in several processes.

A stopped run resumes with the unfinished shards. Once all shards and the metadata are written, a rename publishes the
dataset.
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.utils import shard_utils
from tqdm import tqdm

from mambaout_jax.data.errors import DataError
from mambaout_jax.data.label_maps import IGNORED
from mambaout_jax.data.prepare.shard_workers import run_jobs
from mambaout_jax.data.prepare.shards import (
    Item,
    ShardJob,
    hash_item,
    read_item,
    read_label_map,
    read_manifest,
    write_shard,
)
from mambaout_jax.data.sources import FILE_FORMAT, ORIGIN, reading_metadata
from mambaout_jax.errors import printable
from mambaout_jax.process import commit_folder, lock
from mambaout_jax.words import count, listed

SHOWN_CLASSES = 10  # in a warning


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A dataset to write.

    Attributes:
        encoding: "jpeg" if all images are JPEGs, None for mixed formats.
        convert: maps the bytes of an image and its decoded `Image` to the bytes to store; a module-level function,
            because it is pickled. None to store bytes unchanged.
        exif_orientation: whether images are turned upright by their EXIF orientation when they are read.
        skip_bad: leave out images that cannot be decoded or whose label map is invalid.
        read_labels: maps the bytes of a label map, those of its image, and (height, width) of the image to the bytes to
            store and the set of labels, or raises DataError; a module-level function or a partial of one. None for
            images with labels.
        category_ids: ids of the classes in the annotation file, for images with objects; None for others.
        source_stamp: a fingerprint of the source's files, taken before they were read; None for none.
        about: additional arguments of `tfds.core.DatasetInfo`.
    """

    name: str
    version: str
    class_names: tuple[str, ...]
    splits: dict[str, list[Item]]
    encoding: str | None = None
    convert: Callable[[bytes, Image.Image], bytes] | None = None
    exif_orientation: bool = False
    skip_bad: bool = False
    read_labels: Callable[[bytes, bytes, tuple[int, int]], tuple[bytes, set[int]]] | None = None
    category_ids: tuple[int, ...] | None = None
    source_stamp: str | None = None
    about: dict = dataclasses.field(default_factory=dict)


class Written(NamedTuple):
    """The content of a dataset, as written; an image with a label map or objects counts for all of its classes."""

    num_images: dict[str, int]
    images_per_class: dict[str, list[int]]
    num_converted: int
    num_skipped: int


def read_info(folder: str | os.PathLike) -> tfds.core.DatasetInfo:
    """Read the metadata of a prepared dataset.

    Raises:
        DataError: TFDS cannot read the metadata.
        MachineError: the files cannot be read.
    """
    with reading_metadata(folder):
        return tfds.builder_from_directory(folder).info


@contextlib.contextmanager
def open_workspace(target: Path) -> Iterator[Path]:
    """Yield the folder in which the dataset `target` is written, locked for one run at a time.

    It is kept if the run does not finish, and removed if the dataset is complete or nothing was written.

    Raises:
        DataError: another run holds the lock.
    """
    folder = target.with_name(f"{target.name}.incomplete")
    folder.mkdir(parents=True, exist_ok=True)
    lock_file = folder / "lock"
    with lock_file.open("w") as file:
        try:
            lock(file)
            if not os.path.samestat(os.fstat(file.fileno()), lock_file.stat()):
                raise FileNotFoundError(lock_file)
        except (BlockingIOError, FileNotFoundError):  # locked, or removed by a run that has just finished
            raise DataError(f"another run is preparing {target}; wait for it and rerun the command") from None
        finished = False
        try:
            yield folder
            finished = True
        finally:
            if finished or not any(path.is_file() and path != lock_file for path in folder.rglob("*")):
                shutil.rmtree(folder)
                with contextlib.suppress(OSError):  # not empty: it contains other versions
                    target.parent.rmdir()


def write_dataset(dataset: Dataset, workspace: Path, target: Path, workers: int) -> Written:
    """Write a dataset below `workspace`, read it back, and rename it to `target`.

    Images are sorted by the hashes of their names, so that a slice of a split is a random sample and equal images give
    equal files on every machine. Every image is decoded once.

    Args:
        workers: number of processes that write shards; 1 writes them in this process.

    Raises:
        DataError: images are empty or cannot be decoded, label maps are invalid or have no foreground, or there is not
            enough disk space.
        OSError: a write failed.
    """
    all_items = [item for items in dataset.splits.values() for item in items]
    jobs = list(_plan(dataset, workspace))
    manifests = {job.file: manifest for job in jobs if (manifest := read_manifest(job))}
    _remove_stale_files(workspace, jobs, manifests)
    missing = [job for job in jobs if job.file not in manifests]
    _check_space(workspace, missing)
    if manifests:
        tqdm.write(f"{len(manifests)} of {count(len(jobs), 'shard')} exist from an earlier run", file=sys.stderr)
    num_done = sum(manifest["records"] for manifest in manifests.values())
    with tqdm(total=len(all_items), initial=num_done, unit=" images", desc=dataset.name) as bar:
        manifests |= dict(zip([job.file for job in missing], run_jobs(write_shard, missing, workers, bar), strict=True))
    unreadable = [tuple(bad) for job in jobs for bad in manifests[job.file]["unreadable"]]
    histograms = {split: collections.Counter() for split in dataset.splits}
    num_images = dict.fromkeys(dataset.splits, 0)
    for job in jobs:
        num_images[job.split] += manifests[job.file]["records"]
        labels = manifests[job.file].get("labels", {})
        histograms[job.split].update({int(label): count for label, count in labels.items()})
    counts = {split: [found[label] for label in range(len(dataset.class_names))] for split, found in histograms.items()}
    _check_readable(dataset, unreadable, len(all_items), counts)
    if dataset.read_labels:
        _check_labels(dataset, histograms, [file for job in jobs for file in manifests[job.file]["unlabeled"]])
    _write_metadata(dataset, jobs, manifests)
    commit_folder(jobs[0].file.parent, target, replace=True)
    return Written(num_images, counts, sum(manifest["converted"] for manifest in manifests.values()), len(unreadable))


def content_digest(dataset: Dataset) -> str:
    """Compute the digest of the images of a dataset and their labels, as `write_dataset` records it.

    Raises:
        MachineError: a file cannot be read.
    """
    items = [(split, item) for split, items in dataset.splits.items() for item in items]
    with ThreadPoolExecutor() as threads:
        hashes = threads.map(lambda pair: _hash_files(*pair), items)
        bar = tqdm(hashes, total=len(items), unit=" images", desc=f"comparing {dataset.name}")
        return _join_digest(dataset.class_names, sum(bar))


def _hash_files(split: str, item: Item) -> int:
    return hash_item(split, item, read_item(item), None if item.label_map is None else read_label_map(item))


def _join_digest(class_names: Sequence[str], content: int) -> str:
    return hashlib.sha256(json.dumps([list(class_names), f"{content % 2**256:x}"]).encode()).hexdigest()


def _plan(dataset: Dataset, workspace: Path) -> Iterator[ShardJob]:
    data, manifests = workspace / "data", workspace / "manifests"
    for folder in (data, manifests):
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
            manifest = manifests / f"{file.name}.json"
            yield ShardJob(
                split,
                file,
                manifest,
                tuple(items[start:end]),
                dataset.convert,
                dataset.skip_bad,
                dataset.read_labels,
                dataset.exif_orientation,
            )


def _remove_stale_files(workspace: Path, jobs: Sequence[ShardJob], manifests: dict) -> None:
    keep = {path for job in jobs if job.file in manifests for path in (job.file, job.manifest)}
    for folder in ("data", "manifests"):
        for path in (workspace / folder).iterdir():
            if path not in keep:
                path.unlink()


def _check_space(workspace: Path, jobs: Sequence[ShardJob]) -> None:
    needed = sum(item.size for job in jobs for item in job.items)
    free = shutil.disk_usage(workspace).free
    if needed > free:
        raise DataError(
            f"{workspace.parent} needs {needed / 1e9:.1f} GB and its disk has {free / 1e9:.1f} GB free; "
            "free some space, or choose another folder with --data-dir"
        )


def _write_metadata(dataset: Dataset, jobs: Sequence[ShardJob], manifests: dict) -> None:
    data = jobs[0].file.parent
    content = sum(int(manifest["content"], 16) for manifest in manifests.values())
    digest = _join_digest(dataset.class_names, content)
    origin = {"digest": digest, "exif_orientation": dataset.exif_orientation, "source_stamp": dataset.source_stamp}
    if dataset.read_labels:
        sizes = [manifest["max_size"] for manifest in manifests.values()]
        origin["max_size"] = [max(sides) for sides in zip(*sizes, strict=True)]
    if dataset.category_ids:
        origin["category_ids"] = list(dataset.category_ids)
        origin["portrait"] = {job.file.name: manifests[job.file]["portrait"] for job in jobs}
    (data / ORIGIN).write_text(json.dumps(origin))
    template = tfds.core.ShardedFileTemplate(data_dir=data, dataset_name=dataset.name, filetype_suffix=FILE_FORMAT)
    splits = []
    for split in dataset.splits:
        of_split = [manifests[job.file] for job in jobs if job.split == split]
        splits.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[manifest["records"] for manifest in of_split],
                num_bytes=sum(manifest["bytes"] for manifest in of_split),
                filename_template=template.replace(split=split),
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=data,
        features={
            "image": tfds.features.Image(encoding_format=dataset.encoding),
            **_label_feature(dataset),
            "file_name": tfds.features.Text(),
        },
        split_infos=splits,
        version=dataset.version,
        check_data=False,
        supervised_keys=None if dataset.category_ids else ("image", *_label_feature(dataset)),
        **dataset.about,
    )


def _label_feature(dataset: Dataset) -> dict[str, tfds.features.FeatureConnector]:
    if dataset.category_ids:
        return {
            "categories": tfds.features.Sequence(tfds.features.ClassLabel(names=dataset.class_names)),
            "annotations": tfds.features.Text(),
            "image_info": tfds.features.Tensor(shape=(3,), dtype=np.int64),
        }
    if dataset.read_labels is None:
        return {"label": tfds.features.ClassLabel(names=dataset.class_names)}
    return {"label_map": tfds.features.LabeledImage(encoding_format="png", labels=list(dataset.class_names))}


def _check_readable(
    dataset: Dataset, unreadable: Sequence[tuple[str, str]], total: int, counts: dict[str, list[int]]
) -> None:
    """Print all invalid files, and check that there are none, or that each class has others."""
    for name, reason in unreadable:
        tqdm.write(f"{'skipped' if dataset.skip_bad else 'invalid'}: {printable(name)}: {reason}", file=sys.stderr)
    if unreadable and not dataset.skip_bad:
        name, reason = unreadable[0]
        of_all = f"{len(unreadable)} of {count(total, 'image-mask pair' if dataset.read_labels else 'file')}"
        raise DataError(
            f"invalid: {of_all} (first: {name}: {reason}); replace or remove them, or leave out files of your own with "
            "--skip-bad"
        )
    # A class may be in none of the label maps, and have no object.
    per_class = (
        [] if dataset.read_labels or dataset.category_ids else zip(dataset.class_names, counts["train"], strict=True)
    )
    empty = [name for name, count in per_class if not count]
    bare = [split for split, of_class in counts.items() if not sum(of_class)]
    if unreadable and (empty or bare):
        raise DataError(f"{f'class {empty[0]!r}' if empty else f'split {bare[0]!r}'} has no valid image; add some")


def _check_labels(dataset: Dataset, histograms: dict[str, collections.Counter], unlabeled: Sequence[str]) -> None:
    """Print classes and label maps without labeled pixels, and check that the foreground is not ignored.

    Raises:
        DataError: the training images have only ignored pixels, or ignored pixels and the first class.
    """
    for split, found in histograms.items():
        if IGNORED in found and set(found) <= {0, IGNORED}:
            sentence = (
                f"the masks of split {split!r} contain only {listed(map(str, sorted(found)))}, and {IGNORED} means "
                f"ignored; if {IGNORED} marks the foreground, replace it with 1"
            )
            if split == "train":
                raise DataError(sentence)
            tqdm.write(f"warning: {sentence}", file=sys.stderr)
    if unlabeled:
        tqdm.write(
            f"warning: {count(len(unlabeled), 'mask')} with only ignored pixels (first: {printable(unlabeled[0])})",
            file=sys.stderr,
        )
    if missing := [name for label, name in enumerate(dataset.class_names) if label not in histograms["train"]]:
        names = ", ".join(missing[:SHOWN_CLASSES]) + (", ..." if len(missing) > SHOWN_CLASSES else "")
        tqdm.write(f"warning: {count(len(missing), 'class')} in no training mask: {names}", file=sys.stderr)
