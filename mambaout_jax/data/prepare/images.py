"""Preparation of the user's own images: ImageNet, class folders, images with masks, ADE20K and COCO."""

import dataclasses
import itertools
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from mambaout_jax import storage
from mambaout_jax.data.errors import DataError
from mambaout_jax.data.names import ADE20K, IMAGENET, data_root, known_datasets, normalize_name
from mambaout_jax.data.prepare import coco, folders, imagenet, label_maps
from mambaout_jax.data.prepare.builders import check_is_folder, is_complete
from mambaout_jax.data.prepare.dataset_writer import (
    Dataset,
    content_digest,
    open_workspace,
    read_info,
    write_dataset,
)
from mambaout_jax.data.prepare.upload import upload
from mambaout_jax.data.sources import FILE_FORMAT, read_origin
from mambaout_jax.errors import reason
from mambaout_jax.machine import MachineError, describe_fault, raise_machine_fault
from mambaout_jax.process import within_seconds

NAME = re.compile(r"[a-z][a-z0-9_]*")
LOCAL_DATA_DIR = "~/tensorflow_datasets"  # the default of TFDS, where datasets for a bucket are written first


class Prepared(NamedTuple):
    """A prepared dataset.

    Attributes:
        folder: folder of the dataset.
        data_dir: folder of prepared datasets, for `config.data.data_dir`.
        num_images: number of images of each split.
        images_per_class: number of images of each class, by split; None if the dataset existed before.
        num_converted: number of images that were converted to another format.
        num_skipped: number of images that were left out because they or their masks are invalid.
    """

    name: str
    folder: str
    data_dir: str
    num_images: dict[str, int]
    num_classes: int
    images_per_class: dict[str, list[int]] | None = None
    num_converted: int = 0
    num_skipped: int = 0


def prepare_imagenet(
    kind: str,
    source: str,
    data_dir: str | None = None,
    workers: int = 1,
    metadata: imagenet.ImageNetMetadata | None = None,
    overwrite: bool = False,
) -> Prepared:
    """Write ImageNet as the dataset `imagenet2012` of TFDS; do nothing if it was written from the same files.

    The files are the same if their names, sizes and times of change are; otherwise their images are compared, which
    reads all of them.

    Args:
        kind: form of `source`: "tars", "folder" or "tfrecord".
        source: folder of the user's copy.
        data_dir: folder or bucket of prepared datasets; None for the default of TFDS.
        workers: number of processes that write.
        metadata: the expected content; None for ILSVRC 2012.
        overwrite: replace an existing dataset.

    Raises:
        DataError: the source is not ImageNet, is incomplete or damaged, the dataset exists with other images, or
            another run is preparing it.
        OSError: a write failed.
    """
    metadata = metadata or imagenet.official_metadata()

    folder = _expand_home(source)

    def read(workspace: Path | None) -> Dataset:
        try:
            if kind == "tars":
                return imagenet.read_tars(folder, metadata, workspace and workspace / "checked.json")
            return {"folder": imagenet.read_folders, "tfrecord": imagenet.read_tfrecords}[kind](folder, metadata)
        except OSError as error:  # named as those of the source, before those of the target
            raise_machine_fault(error, folder)
            raise

    def read_stamped(workspace: Path) -> Dataset:
        stamp = imagenet.stamp_files(kind, folder)
        return dataclasses.replace(read(workspace), source_stamp=stamp)

    def is_same(origin: Mapping[str, Any]) -> bool:
        if origin.get("source_stamp") == imagenet.stamp_files(kind, folder):
            return True
        return origin["digest"] == content_digest(read(None))

    return _prepare(
        IMAGENET,
        imagenet.VERSION,
        metadata.num_images,
        metadata.class_names,
        read_stamped,
        data_dir,
        workers,
        is_same=is_same,
        overwrite=overwrite,
    )


def prepare_folder(
    source: str,
    name: str | None = None,
    data_dir: str | None = None,
    workers: int = 1,
    *,
    validation: float = 0.0,
    skip_bad: bool = False,
    overwrite: bool = False,
) -> Prepared:
    """Write images in class folders as a TFDS dataset; do nothing if it was written from the same files.

    Args:
        source: a folder with {train,val,test}/CLASS/* or CLASS/*.
        name: name of the dataset; None for the name of the folder.
        data_dir: folder or bucket of prepared datasets; None for the default of TFDS.
        workers: number of processes that write.
        validation: fraction of the training images of each class that become the split "validation"; 0 for none.
        skip_bad: leave out files that cannot be decoded.
        overwrite: replace an existing dataset.

    Raises:
        DataError: the folder has another layout, a file is not an image, the name is invalid, the dataset exists with
            other images, or it would be written into the image folder.
        OSError: a write failed.
    """
    folder = _expand_home(source)
    name = Path(os.path.realpath(folder)).name if name is None else name
    _check_name(name)
    dataset = dataclasses.replace(folders.read_folder(folder, name, validation), skip_bad=skip_bad)
    return _prepare_listed(dataset, folder, data_dir, workers, overwrite=overwrite)


def prepare_segmentation(
    source: str,
    name: str | None = None,
    data_dir: str | None = None,
    workers: int = 1,
    *,
    validation: float = 0.0,
    skip_bad: bool = False,
    overwrite: bool = False,
) -> Prepared:
    """Write images with masks as a TFDS dataset; do nothing if it was written from the same files.

    Args:
        source: a folder with {train,val,test}/{images,masks}/* or {images,masks}/*.
        name: name of the dataset; None for the name of the folder.
        data_dir: folder or bucket of prepared datasets; None for the default of TFDS.
        workers: number of processes that write.
        validation: fraction of the training images that become the split "validation"; 0 for none.
        skip_bad: leave out images whose files cannot be decoded or do not match.
        overwrite: replace an existing dataset.

    Raises:
        DataError: as in `prepare_folder`, or a mask does not match its image.
        OSError: a write failed.
    """
    folder = _expand_home(source)
    name = Path(os.path.realpath(folder)).name if name is None else name
    _check_name(name)
    dataset = dataclasses.replace(label_maps.read_mask_folder(folder, name, validation), skip_bad=skip_bad)
    return _prepare_listed(dataset, folder, data_dir, workers, overwrite=overwrite)


def prepare_ade20k(
    source: str, data_dir: str | None = None, workers: int = 1, *, zipped: bool = False, overwrite: bool = False
) -> Prepared:
    """Write ADE20K as the dataset `ade20k`; do nothing if it was written from the same files.

    Args:
        source: the folder ADEChallengeData2016, or ADEChallengeData2016.zip.
        data_dir: folder or bucket of prepared datasets; None for the default of TFDS.
        workers: number of processes that write.
        zipped: whether `source` is the zip file. It is extracted next to the prepared datasets, and kept.
        overwrite: replace an existing dataset.

    Raises:
        DataError: the source is not ADE20K, or is incomplete or damaged.
        OSError: a write failed.
    """
    folder = _expand_home(source)
    if zipped:
        extracted = _local_folder(data_root(data_dir), "downloads", ADE20K)
        check_is_folder(extracted)
        extracted.mkdir(parents=True, exist_ok=True)
        folder = label_maps.extract_ade20k(folder, extracted)
    return _prepare_listed(label_maps.read_ade20k(folder), folder, data_dir, workers, overwrite=overwrite)


def prepare_coco(
    source: str,
    data_dir: str | None = None,
    workers: int = 1,
    *,
    expected: Mapping[str, int] | None = None,
    overwrite: bool = False,
) -> Prepared:
    """Write COCO 2017 as the dataset `coco2017`; do nothing if it was written from the same files.

    Args:
        source: folder with train2017, val2017 and annotations.
        data_dir: folder or bucket of prepared datasets; None for the default of TFDS.
        workers: number of processes that write.
        expected: number of images of each split; None for those of COCO.
        overwrite: replace an existing dataset.

    Raises:
        DataError: the source is not COCO 2017, or is incomplete or damaged.
        OSError: a write failed.
    """
    folder = _expand_home(source)
    return _prepare_listed(coco.read_coco(folder, expected), folder, data_dir, workers, overwrite=overwrite)


def prepare_coco_format(
    source: str,
    annotations: str,
    name: str | None = None,
    data_dir: str | None = None,
    workers: int = 1,
    *,
    validation: str | float | None = None,
    skip_bad: bool = False,
    overwrite: bool = False,
) -> Prepared:
    """Write images with objects as a TFDS dataset; do nothing if it was written from the same files.

    Args:
        source: folder of the images.
        annotations: JSON file in COCO's format.
        name: name of the dataset; None for the name of the folder.
        data_dir: folder or bucket of prepared datasets; None for the default of TFDS.
        workers: number of processes that write.
        validation: JSON file of the validation images, or the fraction of the images that become that split.
        skip_bad: leave out images that are missing, cannot be decoded or have another size than in the annotations.
        overwrite: replace an existing dataset.

    Raises:
        DataError: the annotations are inconsistent, an image is missing or damaged, or as in `prepare_folder`.
        OSError: a write failed.
    """
    folder = _expand_home(source)
    name = Path(os.path.realpath(folder)).name if name is None else name
    _check_name(name)
    other = _expand_home(validation) if isinstance(validation, str) else validation
    dataset = coco.read_coco_format(folder, name, _expand_home(annotations), other, skip_missing=skip_bad)
    return _prepare_listed(
        dataclasses.replace(dataset, skip_bad=skip_bad), folder, data_dir, workers, overwrite=overwrite
    )


def _prepare_listed(dataset: Dataset, folder: Path, data_dir: str | None, workers: int, *, overwrite: bool) -> Prepared:
    """Write a dataset whose files are listed."""
    target = _local_folder(data_root(data_dir), dataset.name, dataset.version)
    if Path(os.path.realpath(target)).is_relative_to(Path(os.path.realpath(folder))):
        raise DataError(f"{target} is inside the image folder {folder}; choose another folder with --data-dir")
    return _prepare(
        dataset.name,
        dataset.version,
        {split: len(items) for split, items in dataset.splits.items()},
        dataset.class_names,
        lambda _: dataset,
        data_dir,
        workers,
        is_same=lambda origin: origin["digest"] == content_digest(dataset),
        overwrite=overwrite,
    )


def _prepare(
    name: str,
    version: str,
    num_images: dict[str, int],
    class_names: tuple[str, ...],
    read: Callable[[Path], Dataset],
    data_dir: str | None,
    workers: int,
    *,
    is_same: Callable[[Mapping[str, Any]], bool],
    overwrite: bool,
) -> Prepared:
    root = data_root(data_dir)
    target = root / name / version
    prepared = Prepared(name, str(target), str(root), num_images, len(class_names))
    remote = storage.is_remote(root)
    try:
        complete = within_seconds(storage.REMOTE_SECONDS, lambda: is_complete(target))
    except Exception as error:  # each bucket client raises its own types
        if fault := describe_fault(error):
            raise MachineError(f"data_dir {root} cannot be read: {fault}") from error
        raise DataError(f"data_dir {root} cannot be read ({reason(error)})") from error
    if complete and not overwrite:
        return _check_prepared(target, prepared, class_names, is_same)
    local = _local_folder(root, name, version)
    check_is_folder(local)
    try:
        with open_workspace(local) as workspace:
            if overwrite or not is_complete(epath.Path(local)):
                if local.exists() and not overwrite:
                    raise DataError(f"{local} exists without the metadata of a dataset; move it away")
                written = write_dataset(read(workspace), workspace, local, workers)
                prepared = prepared._replace(**written._asdict())
            elif remote:
                prepared = _check_prepared(epath.Path(local), prepared, class_names, is_same)
            if remote:
                upload(epath.Path(local), target)
    except PermissionError as error:
        raise DataError(f"cannot write {name} to {error.filename}; choose another data_dir") from error
    return prepared


def _expand_home(source: str) -> Path:
    if fault := storage.find_unknown_home(source):
        raise DataError(f"{source} {fault}")
    return Path(source).expanduser()


def _local_folder(root: epath.Path, name: str, version: str) -> Path:
    return Path(data_root(LOCAL_DATA_DIR) if storage.is_remote(root) else root) / name / version


def _check_prepared(
    folder: epath.Path, expected: Prepared, class_names: tuple[str, ...], is_same: Callable[[Mapping[str, Any]], bool]
) -> Prepared:
    """Check that a dataset was written from the images of the source, and return its counts.

    Args:
        is_same: compares what `prepare` recorded about the images of the dataset with the source.
    """
    info = read_info(folder)
    counted = {split: info.splits[split].num_examples for split in info.splits}
    file_format = info.file_format.value
    other = "rerun with --overwrite to replace it, or choose another name or data_dir"
    features = dict(info.features)
    if "categories" in features:
        feature = features["categories"].feature
    else:
        feature = features.get("label") or features["label_map"]
    if file_format != FILE_FORMAT:
        raise DataError(f"{folder} already has {expected.name}, as {file_format}; expected {FILE_FORMAT}; {other}")
    pairs = itertools.zip_longest(map(normalize_name, feature.names), class_names)
    for number, (then, now) in enumerate(pairs):
        if then != now:
            raise DataError(
                f"{folder} already has {expected.name}, with other classes (first: class {number} is {then or 'none'} "
                f"there and {now or 'none'} in the source); {other}"
            )
    origin = read_origin(folder)
    if "digest" not in origin:
        raise DataError(
            f"{folder} was written by another program, so that its images cannot be compared with those of the source; "
            f"train on it as it is, or {other}"
        )
    if not is_same(origin):
        raise DataError(
            f"{folder} was written from other images, names or labels than those of the source (then {counted}, "
            f"now {expected.num_images}); {other}"
        )
    return expected._replace(num_images=counted)


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        proposal = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
        raise DataError(
            f"{name!r} is not a valid dataset name; use lowercase letters, digits and underscores, "
            f"such as --name {proposal if NAME.fullmatch(proposal) else 'my_images'}"
        )
    if name in known_datasets():
        raise DataError(f"{name!r} is the name of another dataset; choose another --name")
