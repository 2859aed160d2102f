"""Prepare images that a person has: ImageNet, or class folders of their own."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from etils import epath

from mambaout_jax.data import buckets
from mambaout_jax.data.errors import DataError
from mambaout_jax.data.names import known_datasets
from mambaout_jax.data.prepare import folders, imagenet
from mambaout_jax.data.prepare.builders import check_is_folder, is_complete
from mambaout_jax.data.prepare.dataset_writer import Dataset, open_workspace, read_info, write_dataset

NAME = re.compile(r"[a-z][a-z0-9_]*")
LOCAL_DATA_DIR = "~/tensorflow_datasets"  # TFDS's default, where what goes to a bucket is made


class Prepared(NamedTuple):
    """Tell what a prepared dataset holds.

    Attributes:
        folder: where the dataset is.
        data_dir: the folder that it was prepared in, which a config names.
        num_images: the records of each split.
        images_per_class: the same, class by class; None for a dataset that was there before.
        num_converted: how many images were stored as others than they were.
    """

    name: str
    folder: str
    data_dir: str
    num_images: dict[str, int]
    num_classes: int
    images_per_class: dict[str, list[int]] | None = None
    num_converted: int = 0


def prepare_imagenet(
    kind: str, source: str, data_dir: str | None = None, workers: int = 1, facts: imagenet.Facts | None = None
) -> Prepared:
    """Write ImageNet as TFDS's `imagenet2012`, from what a person has of it; do nothing if it is there.

    Args:
        kind: what `source` holds: "tars", "folder" or "tfrecord".
        data_dir: the folder or bucket that datasets are prepared in; the default is TFDS's own.
        workers: processes that write.
        facts: what ImageNet should be; the default is the official one.

    Raises:
        DataError: the source is not ImageNet, not whole or damaged, or another run is preparing it.
        OSError: writing failed.
    """
    facts = facts or imagenet.official_facts()

    def read(workspace: Path) -> Dataset:
        folder = Path(source).expanduser()
        try:
            if kind == "tars":
                return imagenet.read_tars(folder, facts, workspace / "checked.json")
            return {"folder": imagenet.read_folders, "tfrecord": imagenet.read_tfrecords}[kind](folder, facts)
        except PermissionError as error:
            raise folders.unreadable(error, folder) from error

    return _prepare(imagenet.NAME, imagenet.VERSION, facts.num_images, facts.class_names, read, data_dir, workers)


def prepare_folder(source: str, name: str | None = None, data_dir: str | None = None, workers: int = 1) -> Prepared:
    """Write images in class folders as a TFDS dataset; do nothing if they are there.

    Args:
        source: a folder with {train,val,test}/CLASS/* or CLASS/*.
        name: what the dataset is called; the default is the folder's name.
        data_dir: the folder or bucket that datasets are prepared in; the default is TFDS's own.
        workers: processes that write.

    Raises:
        DataError: the folder is laid out otherwise, a file is no image, the name will not do, or the dataset would lie
            among the images.
        OSError: writing failed.
    """
    folder = Path(source).expanduser()
    real = Path(os.path.realpath(folder))
    name = real.name if name is None else name
    _check_name(name)
    target = _local_folder(buckets.data_root(data_dir), name, folders.VERSION)
    if Path(os.path.realpath(target)).is_relative_to(real):
        raise DataError(f"{target} would lie among the images in {folder}; name another folder with --data-dir")
    dataset = folders.read_folder(folder, name)
    num_images = {split: len(items) for split, items in dataset.splits.items()}
    return _prepare(name, dataset.version, num_images, dataset.class_names, lambda _: dataset, data_dir, workers)


def _prepare(
    name: str,
    version: str,
    num_images: dict[str, int],
    class_names: tuple[str, ...],
    read: Callable[[Path], Dataset],
    data_dir: str | None,
    workers: int,
) -> Prepared:
    root = buckets.data_root(data_dir)
    target = root / name / version
    prepared = Prepared(name, str(target), str(root), num_images, len(class_names))
    remote = buckets.is_remote(root)
    try:
        whole = buckets.within_seconds(buckets.REMOTE_SECONDS, lambda: is_complete(target))
    except Exception as error:  # each kind of bucket raises types of its own
        raise DataError(f"data_dir {root} cannot be read ({error})") from error
    if whole:
        _check_prepared(target, prepared, class_names)
        return prepared
    local = _local_folder(root, name, version)
    check_is_folder(local)
    try:
        with open_workspace(local) as workspace:
            if not is_complete(epath.Path(local)):
                if local.exists():
                    raise DataError(f"{local} is there without the metadata of a dataset; move it away")
                written = write_dataset(read(workspace), workspace, local, workers)
                prepared = prepared._replace(**written._asdict())
            elif remote:
                _check_prepared(epath.Path(local), prepared, class_names)
            if remote:
                buckets.upload(epath.Path(local), target)
    except PermissionError as error:
        raise DataError(f"cannot write {name} to {error.filename}; choose another data_dir") from error
    return prepared


def _local_folder(root: epath.Path, name: str, version: str) -> Path:
    return Path(LOCAL_DATA_DIR if buckets.is_remote(root) else root).expanduser() / name / version


def _check_prepared(folder: epath.Path, expected: Prepared, class_names: tuple[str, ...]) -> None:
    info = read_info(folder)
    counted = {split: info.splits[split].num_examples for split in expected.num_images if split in info.splits}
    form = info.file_format.value
    if (
        form != buckets.FILE_FORMAT
        or counted != expected.num_images
        or tuple(info.features["label"].names) != class_names
    ):
        raise DataError(
            f"{folder} holds {expected.name} already, as {form}, with {counted}, but what is to be prepared has "
            f"{expected.num_images}, or other classes; move that folder away, or choose another name or data_dir"
        )


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        proposal = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
        raise DataError(
            f"{name!r} cannot be a dataset's name; use lower-case letters, digits and underscores, "
            f"such as --name {proposal if NAME.fullmatch(proposal) else 'my_images'}"
        )
    if name in known_datasets():
        raise DataError(f"TFDS has a dataset {name!r} of its own; choose another --name")
