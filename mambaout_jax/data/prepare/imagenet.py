"""ImageNet (ILSVRC 2012) in its three common forms: the official tars, folders of images, or TFRecords of TFDS.

All of them give the dataset `imagenet2012` of TFDS, with classes in the order of their WordNet ids.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds
from PIL import Image
from tqdm import tqdm

from mambaout_jax.data.errors import DataError
from mambaout_jax.data.imagenet_classes import IMAGENET_SPLITS, imagenet_class_names
from mambaout_jax.data.names import IMAGENET
from mambaout_jax.data.prepare import folders
from mambaout_jax.data.prepare.dataset_writer import Dataset, read_info
from mambaout_jax.data.prepare.shards import Item
from mambaout_jax.data.prepare.tfrecords import index_tfrecord
from mambaout_jax.process import write_text_atomically
from mambaout_jax.words import count

VERSION = "5.1.0"
TRAIN_TAR, VALIDATION_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
VALIDATION_FILE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
CHUNK_BYTES = 4 << 20
MANY_FILES = 10_000  # that many take seconds, so that a progress bar is shown
DOWNLOAD = "download it again from image-net.org, or unpack the images and use --folder"


@dataclasses.dataclass(frozen=True)
class ImageNetMetadata:
    """The expected classes, labels, sizes and checksums of ImageNet.

    Attributes:
        class_names: sorted WordNet ids.
        validation_labels: class of each validation image, in the order of the file names.
        num_images: number of images of each split.
        tars: size in bytes and SHA-256 of each official tar.
    """

    class_names: tuple[str, ...]
    validation_labels: tuple[str, ...]
    num_images: dict[str, int]
    tars: dict[str, tuple[int, str]]


def official_metadata() -> ImageNetMetadata:
    """Return the metadata of ILSVRC 2012.

    References:
        Russakovsky et al., arXiv:1409.0575, table 2 (1,281,167 training and 50,000 validation images, 50 per class).
        Class names, labels and checksums are taken from `imagenet2012` in TFDS.
    """
    labels, checksums = (
        tfds.core.tfds_path(f"datasets/imagenet2012/{file}").read_text().split()
        for file in ("validation_labels.txt", "checksums.tsv")
    )
    tars = {
        url.rsplit("/", 1)[1]: (int(size), digest)
        for url, size, digest in zip(*(checksums[column::3] for column in range(3)), strict=True)
    }
    return ImageNetMetadata(imagenet_class_names(), tuple(labels), dict(IMAGENET_SPLITS), tars)


def read_tars(folder: Path, metadata: ImageNetMetadata, checked_file: Path | None = None) -> Dataset:
    """Index the images inside the two official tars, after checking sizes and checksums.

    Args:
        checked_file: JSON file with the tars that were already checked, for resumed runs; None to leave out the
            checksums.

    Raises:
        DataError: a tar is missing, differs from the official one, or is damaged.
    """
    _check_tars(folder, metadata, checked_file)
    labels = {name: label for label, name in enumerate(metadata.class_names)}
    train = [
        Item(file, _label_of(class_name, labels, f"{folder / TRAIN_TAR} (file {file})"), *place)
        for class_name, file, *place in _list_train_tar(folder / TRAIN_TAR)
    ]
    path = folder / VALIDATION_TAR
    validation = [
        Item(
            member.name,
            _validation_label(path, member.name, metadata, labels),
            str(path),
            member.offset_data,
            member.size,
        )
        for member in _members(path, 0, path.stat().st_size)
    ]
    return _imagenet({"train": train, "validation": validation}, metadata, folder)


def read_folders(folder: Path, metadata: ImageNetMetadata) -> Dataset:
    """List train/CLASS/* and val/CLASS/*, or val/* with the official file names.

    Raises:
        DataError: the folder has another layout or an unknown class, or images are missing.
    """
    names, _ = folders.list_folder(folder)
    val = "validation" if "validation" in names and "val" not in names else "val"
    missing = [name for name in ("train", val) if name not in names]
    if missing:
        raise DataError(f"{folder} has no folder {missing[0]!r}; expected train/n01440764/*.JPEG etc. and val")
    labels = {name: label for label, name in enumerate(metadata.class_names)}
    splits = {}
    for split, part in (("train", folder / "train"), ("validation", folder / val)):
        classes, files = folders.list_folder(part)
        if split == "validation" and not classes:
            splits[split] = [
                Item(file.name, _validation_label(part, file.name, metadata, labels), file.path, 0, file.size)
                for file in files
            ]
            continue
        for class_name in classes:
            _label_of(class_name, labels, part)  # checked before listing all files, which takes long
        listed = tqdm(folders.list_classes(part).items(), desc=f"listing {split}", unit=" classes")
        splits[split] = [
            Item(file.name, labels[class_name], file.path, 0, file.size)
            for class_name, files in listed
            for file in files
        ]
    return _imagenet(splits, metadata, folder)


def read_tfrecords(folder: Path, metadata: ImageNetMetadata) -> Dataset:
    """Index the images inside the TFRecords of `imagenet2012` that were prepared by TFDS.

    Args:
        folder: folder of the dataset, such as imagenet2012/5.1.0, or a parent of it.

    Raises:
        DataError: the dataset is missing, is a different one, or has incomplete files.
    """
    prepared = _find_prepared(folder)
    info = read_info(prepared)
    file_format = info.file_format.value
    names = info.features["label"].names if info.name == IMAGENET and "label" in info.features else ()
    if file_format != "tfrecord" or tuple(names) != metadata.class_names:
        raise DataError(
            f"{prepared} has {info.name} as {file_format}; expected {IMAGENET} as tfrecord, with its classes"
        )
    splits, last = {}, len(metadata.class_names) - 1
    for split in metadata.num_images:
        if split not in info.splits:
            raise DataError(f"{prepared} has no split {split!r}; prepare it with TFDS, or use --tars or --folder")
        splits[split] = []
        shards = list(zip(map(Path, info.splits[split].filepaths), info.splits[split].shard_lengths, strict=True))
        for path, length in tqdm(shards, desc=f"listing {split}", unit=" files"):
            if not path.exists():
                raise DataError(f"{path} is missing; copy it again")
            items = list(index_tfrecord(path))
            if len(items) != length:
                raise DataError(f"{path} has {count(len(items), 'record')}; expected {length}; copy it again")
            for item in items:
                if not 0 <= item.label <= last:
                    raise DataError(f"{item.file_name} in {path} has the label {item.label}; expected 0 to {last}")
            splits[split] += items
    return _imagenet(splits, metadata, prepared)


def _find_prepared(folder: Path) -> Path:
    """Return the folder of the newest version of `imagenet2012` that TFDS prepared."""
    prepared = sorted(
        file.parent
        for pattern in ("", "5.*/", f"{IMAGENET}/5.*/")
        for file in folder.glob(f"{pattern}dataset_info.json")
    )
    if not prepared:
        raise DataError(
            f"{folder} has no {IMAGENET} prepared by TFDS; expected a folder such as {folder}/{IMAGENET}/5.1.0"
        )
    return prepared[-1]


def stamp_files(kind: str, folder: Path) -> str:
    """Compute a fingerprint of the files of a source without reading them, in seconds to a minute.

    It covers names, sizes, and when the files last changed, which no program can set: a source with the same
    fingerprint as before has the same images and labels. One with another fingerprint may have them too.

    Args:
        kind: form of the source: "tars", "folder" or "tfrecord".

    Raises:
        DataError: the folder does not exist, or an entry cannot be read.
    """
    if kind == "tars":
        files = [file.path for file in folders.list_folder(folder)[1] if file.name in (TRAIN_TAR, VALIDATION_TAR)]
    elif kind == "tfrecord":
        folder = _find_prepared(folder)
        files = [file.path for file in folders.list_folder(folder)[1]]
    else:
        parts = [name for name in folders.list_folder(folder)[0] if name in folders.SPLITS]
        files = [path for name in parts for path in _walk(folder / name)]
    digest = hashlib.sha256(kind.encode())
    for path in tqdm(files, desc=f"comparing {IMAGENET}", unit=" files", disable=len(files) < MANY_FILES):
        stat = os.stat(path)
        digest.update(json.dumps([os.path.relpath(path, folder), stat.st_size, stat.st_ctime_ns]).encode())
    return digest.hexdigest()


def _walk(folder: Path) -> Iterator[str]:
    names, files = folders.list_folder(folder)
    yield from (file.path for file in files)
    for name in names:
        yield from _walk(folder / name)


def as_rgb_jpeg(data: bytes, image: Image.Image) -> bytes:
    """Return the bytes of a gray or RGB JPEG unchanged, and any other image as an RGB JPEG of quality 100.

    ImageNet has 22 CMYK JPEGs and one PNG with the extension JPEG, which many decoders reject.
    """
    if data.startswith(b"\xff\xd8") and image.mode in ("L", "RGB"):
        return data
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=100, subsampling=0)
    return file.getvalue()


def _imagenet(splits: dict[str, list[Item]], metadata: ImageNetMetadata, source: Path) -> Dataset:
    for split, expected in metadata.num_images.items():
        if len(splits[split]) != expected:
            raise DataError(f"{source} has {count(len(splits[split]), 'image')} for {split}; expected {expected:,}")
    expected = Counter(metadata.validation_labels)
    counted = Counter(metadata.class_names[item.label] for item in splits["validation"])
    for name in metadata.class_names:
        if counted[name] != expected[name]:
            raise DataError(
                f"{source} has {count(counted[name], 'validation image')} of the class {name}; expected "
                f"{expected[name]}"
            )
    about = {
        "description": "ILSVRC 2012, aka ImageNet: 1,000 classes of photographs.",
        "homepage": "https://image-net.org/",
    }
    return Dataset(IMAGENET, VERSION, metadata.class_names, splits, "jpeg", as_rgb_jpeg, about=about)


def _label_of(class_name: str, labels: dict[str, int], where: Path | str) -> int:
    if class_name not in labels:
        raise DataError(
            f"{where} has the class {class_name!r}, which is not one of the {len(labels):,} of ImageNet; "
            "expected WordNet ids such as n01440764"
        )
    return labels[class_name]


def _validation_label(where: Path, name: str, metadata: ImageNetMetadata, labels: dict[str, int]) -> int:
    match = VALIDATION_FILE.fullmatch(name)
    if not match or not 1 <= int(match[1]) <= len(metadata.validation_labels):
        raise DataError(
            f"{where} has {name!r}; expected ILSVRC2012_val_00000001.JPEG to "
            f"ILSVRC2012_val_{len(metadata.validation_labels):08d}.JPEG"
        )
    return labels[metadata.validation_labels[int(match[1]) - 1]]


def _check_tars(folder: Path, metadata: ImageNetMetadata, checked_file: Path | None) -> None:
    _, present = folders.list_folder(folder)
    sizes = {file.name: file.size for file in present}
    for name in metadata.tars:
        if name not in sizes:
            found = ", ".join(sorted(sizes)[:5]) or "no files"
            raise DataError(
                f"{folder} has no {name} (it has {found}); put the two official tars there under their original names"
            )
    for name, (expected, _) in metadata.tars.items():
        if sizes[name] != expected:
            raise DataError(
                f"{folder / name} has {count(sizes[name], 'byte')}; expected {expected:,}: it is truncated or was "
                f"repacked; {DOWNLOAD}"
            )
    if checked_file is None:
        return
    checked = []
    with contextlib.suppress(FileNotFoundError, ValueError):  # damaged: all are checked again
        checked = json.loads(checked_file.read_text())
    for name, (_, expected) in metadata.tars.items():
        state = [name, sizes[name], (folder / name).stat().st_mtime_ns]
        if state in checked:
            continue
        if _sha256(folder / name) != expected:
            raise DataError(
                f"{folder / name} does not have the official SHA-256: it is damaged or was repacked; {DOWNLOAD}"
            )
        checked.append(state)
        write_text_atomically(checked_file, json.dumps(checked))


def _sha256(path: Path) -> str:
    digest, chunk = hashlib.sha256(), memoryview(bytearray(CHUNK_BYTES))
    with (
        path.open("rb", buffering=0) as file,
        tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc=f"checking {path.name}") as bar,
    ):
        while length := file.readinto(chunk):
            digest.update(chunk[:length])
            bar.update(length)
    return digest.hexdigest()


def _list_train_tar(path: Path) -> Iterator[tuple[str, str, str, int, int]]:
    """Yield class, file name, path, offset and size of each image in the nested tars."""
    inner = list(_members(path, 0, path.stat().st_size))
    for tar in tqdm(inner, desc="listing train", unit=" classes"):
        class_name = tar.name.removesuffix(".tar")
        for member in _members(path, tar.offset_data, tar.offset_data + tar.size):
            if not member.name.startswith(f"{class_name}_"):
                raise DataError(f"{tar.name} in {path} has {member.name!r}; expected {class_name}_*.JPEG")
            yield class_name, member.name, str(path), member.offset_data, member.size


def _members(path: Path, start: int, end: int) -> Iterator[tarfile.TarInfo]:
    """Yield the files of the tar in bytes `start` to `end` of `path`, with offsets in `path`."""
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    if not member.isfile() or member.offset_data + member.size > end:
                        raise DataError(f"{path} has {member.name!r}, which is not a complete file; {DOWNLOAD}")
                    yield member
                file.seek(tar.offset)
                if any(file.read(tarfile.BLOCKSIZE)):  # tarfile treats a damaged header as the end
                    raise tarfile.ReadError("the end is missing")
        except tarfile.TarError as error:
            raise DataError(f"{path} is not a tar, or is damaged near byte {start} ({error}); {DOWNLOAD}") from None
