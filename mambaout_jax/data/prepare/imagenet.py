"""ImageNet (ILSVRC 2012) as people have it: the official tars, folders of images, or TFDS's TFRecords.

All three give the dataset `imagenet2012` of TFDS, with classes in the order of their WordNet ids.
"""

import dataclasses
import hashlib
import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds
from PIL import Image
from tqdm import tqdm

from mambaout_jax.data.errors import DataError
from mambaout_jax.data.prepare import folders
from mambaout_jax.data.prepare.dataset_writer import Dataset, read_info
from mambaout_jax.data.prepare.shards import Item
from mambaout_jax.data.prepare.tfrecords import index_tfrecord

NAME, VERSION = "imagenet2012", "5.1.0"
TRAIN_TAR, VALIDATION_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
VALIDATION_FILE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
CHUNK_BYTES = 4 << 20
DOWNLOAD = "download it again from image-net.org, or unpack the images and use --folder"


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of ImageNet before anything is read.

    Attributes:
        class_names: WordNet ids, in order.
        validation_labels: the class of each validation image, in the order of the files' names.
        num_images: how many images each split has.
        tars: size in bytes and SHA-256 of each official tar.
    """

    class_names: tuple[str, ...]
    validation_labels: tuple[str, ...]
    num_images: dict[str, int]
    tars: dict[str, tuple[int, str]]


def official_facts() -> Facts:
    """Give the facts of ILSVRC 2012.

    References:
        Russakovsky et al., arXiv:1409.0575, table 2 (1,281,167 training and 50,000 validation images, 50 a class).
        Class names, labels and checksums are those of TFDS's `imagenet2012`.
    """
    names, labels, checksums = (
        tfds.core.tfds_path(f"datasets/imagenet2012/{file}").read_text().split()
        for file in ("labels.txt", "validation_labels.txt", "checksums.tsv")
    )
    tars = {
        url.rsplit("/", 1)[1]: (int(size), digest)
        for url, size, digest in zip(*(checksums[column::3] for column in range(3)), strict=True)
    }
    return Facts(tuple(names), tuple(labels), {"train": 1_281_167, "validation": 50_000}, tars)


def read_tars(folder: Path, facts: Facts, notes: Path) -> Dataset:
    """Index the images inside the two official tars, after checking sizes and checksums.

    Args:
        notes: a file that remembers which tars were checked, for a run that goes on.

    Raises:
        DataError: a tar is missing, is another one, or is damaged.
    """
    _check_tars(folder, facts, notes)
    labels = {name: label for label, name in enumerate(facts.class_names)}
    train = [
        Item(file, _label_of(class_name, labels, f"{folder / TRAIN_TAR}, by the name of {file},"), *place)
        for class_name, file, *place in _list_train_tar(folder / TRAIN_TAR)
    ]
    path = folder / VALIDATION_TAR
    validation = [
        Item(
            member.name, _validation_label(path, member.name, facts, labels), str(path), member.offset_data, member.size
        )
        for member in _members(path, 0, path.stat().st_size)
    ]
    return _imagenet({"train": train, "validation": validation}, facts, folder)


def read_folders(folder: Path, facts: Facts) -> Dataset:
    """List train/CLASS/* and val/CLASS/*, or val/* with the official file names.

    Raises:
        DataError: the folder is laid out otherwise, has an unknown class, or lacks images.
    """
    names, _ = folders.list_folder(folder)
    val = "validation" if "validation" in names and "val" not in names else "val"
    missing = [name for name in ("train", val) if name not in names]
    if missing:
        raise DataError(f"{folder} lacks the folder {missing[0]!r}; expected train/n01440764/*.JPEG and so on, and val")
    labels = {name: label for label, name in enumerate(facts.class_names)}
    splits = {}
    for split, part in (("train", folder / "train"), ("validation", folder / val)):
        classes, files = folders.list_folder(part)
        if split == "validation" and not classes:
            splits[split] = [
                Item(file.name, _validation_label(part, file.name, facts, labels), file.path, 0, file.size)
                for file in files
            ]
            continue
        for class_name in classes:
            _label_of(class_name, labels, part)  # before the long listing
        listed = tqdm(folders.list_classes(part).items(), desc=f"listing {split}", unit=" classes")
        splits[split] = [
            Item(file.name, labels[class_name], file.path, 0, file.size)
            for class_name, files in listed
            for file in files
        ]
    return _imagenet(splits, facts, folder)


def read_tfrecords(folder: Path, facts: Facts) -> Dataset:
    """Index the images inside the TFRecords of `imagenet2012` that TFDS has prepared.

    Args:
        folder: the dataset's folder, such as imagenet2012/5.1.0, or one that holds it.

    Raises:
        DataError: there is no such dataset, it is another one, or its files are not whole.
    """
    prepared = sorted(
        file.parent for pattern in ("", "5.*/", f"{NAME}/5.*/") for file in folder.glob(f"{pattern}dataset_info.json")
    )
    if not prepared:
        raise DataError(f"{folder} holds no {NAME} that TFDS prepared; expected a folder such as {folder}/{NAME}/5.1.0")
    info = read_info(prepared[-1])
    form = info.file_format.value
    names = info.features["label"].names if info.name == NAME and "label" in info.features else ()
    if form != "tfrecord" or tuple(names) != facts.class_names:
        raise DataError(f"{prepared[-1]} holds {info.name} as {form}; expected {NAME} as tfrecord, with its classes")
    splits, last = {}, len(facts.class_names) - 1
    for split in facts.num_images:
        if split not in info.splits:
            raise DataError(f"{prepared[-1]} has no split {split!r}; prepare it with TFDS, or use --tars or --folder")
        splits[split] = []
        shards = list(zip(map(Path, info.splits[split].filepaths), info.splits[split].shard_lengths, strict=True))
        for path, length in tqdm(shards, desc=f"listing {split}", unit=" files"):
            if not path.exists():
                raise DataError(f"{path} is missing; copy it there")
            items = list(index_tfrecord(path))
            if len(items) != length:
                raise DataError(f"{path} holds {len(items)} records and {length} were written to it; copy it again")
            for item in items:
                if not 0 <= item.label <= last:
                    raise DataError(f"{item.file_name} in {path} has the label {item.label}; expected 0 to {last}")
            splits[split] += items
    return _imagenet(splits, facts, prepared[-1])


def as_rgb_jpeg(data: bytes, image: Image.Image) -> bytes:
    """Give a grey or RGB JPEG's own bytes, and any other image as an RGB JPEG of the highest quality.

    ImageNet has 22 CMYK JPEGs and one PNG whose name says JPEG; many decoders refuse them.
    """
    if data.startswith(b"\xff\xd8") and image.mode in ("L", "RGB"):
        return data
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=100, subsampling=0)
    return file.getvalue()


def _imagenet(splits: dict[str, list[Item]], facts: Facts, source: Path) -> Dataset:
    for split, expected in facts.num_images.items():
        if len(splits[split]) != expected:
            raise DataError(f"{source} holds {len(splits[split]):,} images for {split}; expected {expected:,}")
    expected = Counter(facts.validation_labels)
    counted = Counter(facts.class_names[item.label] for item in splits["validation"])
    for name in facts.class_names:
        if counted[name] != expected[name]:
            raise DataError(
                f"{source} holds {counted[name]} validation images of the class {name}; expected {expected[name]}"
            )
    about = {
        "description": "ILSVRC 2012, aka ImageNet: 1,000 classes of photographs.",
        "homepage": "https://image-net.org/",
    }
    return Dataset(NAME, VERSION, facts.class_names, splits, "jpeg", as_rgb_jpeg, about)


def _label_of(class_name: str, labels: dict[str, int], where: Path | str) -> int:
    if class_name not in labels:
        raise DataError(
            f"{where} has the class {class_name!r}, which is none of ImageNet's {len(labels):,}; "
            "expected WordNet ids such as n01440764"
        )
    return labels[class_name]


def _validation_label(where: Path, name: str, facts: Facts, labels: dict[str, int]) -> int:
    match = VALIDATION_FILE.fullmatch(name)
    if not match or not 1 <= int(match[1]) <= len(facts.validation_labels):
        raise DataError(
            f"{where} holds {name!r}; expected ILSVRC2012_val_00000001.JPEG to "
            f"ILSVRC2012_val_{len(facts.validation_labels):08d}.JPEG, whose classes are known"
        )
    return labels[facts.validation_labels[int(match[1]) - 1]]


def _check_tars(folder: Path, facts: Facts, notes: Path) -> None:
    _, present = folders.list_folder(folder)
    sizes = {file.name: file.size for file in present}
    for name in facts.tars:
        if name not in sizes:
            held = ", ".join(sorted(sizes)[:5]) or "no files"
            raise DataError(f"{folder} lacks {name} (it holds {held}); put the two official tars there by their names")
    for name, (expected, _) in facts.tars.items():
        if sizes[name] != expected:
            raise DataError(
                f"{folder / name} has {sizes[name]:,} bytes and the official one {expected:,}: it is cut short or was "
                f"packed again; {DOWNLOAD}"
            )
    checked = json.loads(notes.read_text()) if notes.exists() else []
    for name, (_, expected) in facts.tars.items():
        state = [name, sizes[name], (folder / name).stat().st_mtime_ns]
        if state in checked:
            continue
        if _sha256(folder / name) != expected:
            raise DataError(
                f"{folder / name} has another SHA-256 than the official one: it is damaged or was packed again; "
                f"{DOWNLOAD}"
            )
        checked.append(state)
        notes.write_text(json.dumps(checked))


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
    """Give class, file name, path, offset and size of each image in the tars inside a tar."""
    inner = list(_members(path, 0, path.stat().st_size))
    for tar in tqdm(inner, desc="listing train", unit=" classes"):
        class_name = tar.name.removesuffix(".tar")
        for member in _members(path, tar.offset_data, tar.offset_data + tar.size):
            if not member.name.startswith(f"{class_name}_"):
                raise DataError(f"{tar.name} in {path} holds {member.name!r}; expected {class_name}_*.JPEG")
            yield class_name, member.name, str(path), member.offset_data, member.size


def _members(path: Path, start: int, end: int) -> Iterator[tarfile.TarInfo]:
    """Give the files of the tar that lies in `path` from byte `start` to `end`; their offsets are those of `path`."""
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    if not member.isfile() or member.offset_data + member.size > end:
                        raise DataError(f"{path} holds {member.name!r}, which is no whole file; {DOWNLOAD}")
                    yield member
                file.seek(tar.offset)
                if any(file.read(tarfile.BLOCKSIZE)):  # tarfile takes a damaged header for the end
                    raise tarfile.ReadError("the end is missing")
        except tarfile.TarError as error:
            raise DataError(f"{path} is no tar, or is damaged near byte {start} ({error}); {DOWNLOAD}") from None
