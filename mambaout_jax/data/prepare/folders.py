"""Image datasets with one folder per class."""

import hashlib
import os
import stat
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from mambaout_jax.data.errors import DataError
from mambaout_jax.data.names import normalize_name
from mambaout_jax.data.prepare.dataset_writer import Dataset
from mambaout_jax.data.prepare.shards import Item
from mambaout_jax.errors import printable, reason
from mambaout_jax.machine import raise_machine_fault
from mambaout_jax.words import count, listed

VERSION = "1.0.0"
# Common folder names of splits -> names in TFDS.
SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
# Known to Pillow only if `pillow-heif` is installed; without it, the files are reported and not passed over.
HEIF_EXTENSIONS = (".heic", ".heif")
# What other programs leave behind, in lower case; ignored everywhere, as are hidden files.
LEFT_BEHIND = {
    "$recycle.bin",  # Windows
    "desktop.ini",
    "ehthumbs.db",
    "recycler",
    "system volume information",
    "thumbs.db",
    "thumbs.db:encryptable",
    "__macosx",  # macOS
    "icon\r",
    "network trash folder",
    "temporary items",
    "lost+found",  # Linux
    "#recycle",  # network storage of Synology and QNAP
    "#snapshot",
    "@eadir",
    "@recently-snapshot",
    "@recycle",
    "@tmp",
    "__pycache__",  # Python
}


class File(NamedTuple):
    """A file's name, path and size in bytes."""

    name: str
    path: str
    size: int


def is_left_behind(name: str) -> bool:
    """Return whether a file or folder is hidden or was left behind by another program."""
    return name.startswith(".") or name.lower() in LEFT_BEHIND


def has_image_extension(name: str) -> bool:
    """Return whether the extension of a file is that of an image, whether or not its decoder is installed."""
    extension = os.path.splitext(name)[1].lower()
    return extension in HEIF_EXTENSIONS or extension in Image.registered_extensions()


def read_folder(folder: Path, name: str, validation: float = 0.0) -> Dataset:
    """List DIR/{train,val,test}/CLASS/* or DIR/CLASS/*; the latter is a single split, "train".

    Classes are numbered in alphabetical order. Names are normalized to composed characters (NFC), because the same name
    has other bytes after a copy from macOS.

    Args:
        name: name of the dataset.
        validation: fraction of the training images of each class that become the split "validation"; 0 for none.

    Raises:
        DataError: the folder has another layout.
    """
    parts = _find_splits(folder)
    listed = {split: list_classes(part) for split, part in parts.items()}
    labels = {class_name: label for label, class_name in enumerate(sorted(listed["train"]))}
    if len(labels) < 2:
        raise DataError(f"{parts['train']} has {count(len(labels), 'class folder')}; expected two or more")
    for class_name, files in listed["train"].items():
        if not files:
            raise DataError(f"class folder {parts['train'] / class_name} has no images; add some or remove it")
    splits = {}
    for split, classes in listed.items():
        unknown = sorted(set(classes) - set(labels))
        if unknown:
            raise DataError(
                f"{parts[split]} has the class {unknown[0]!r}, which is missing in {parts['train']}; "
                "expected the same class folders in all splits"
            )
        splits[split] = [
            Item(f"{class_name}/{file.name}", labels[class_name], file.path, 0, file.size)
            for class_name, files in classes.items()
            for file in files
        ]
        if not splits[split]:
            raise DataError(f"{parts[split]} has no images; expected them in {parts[split]}/CLASS")
    if validation:
        if "validation" in splits:
            raise DataError(f"{folder} has a validation split already, in {parts['validation']}; leave out --val")
        splits["train"], splits["validation"] = _split(splits["train"], validation)
    about = {"description": f"Images of {count(len(labels), 'class')}, from class folders."}
    return Dataset(name, VERSION, tuple(labels), splits, exif_orientation=True, about=about)


def _split(items: list[Item], fraction: float) -> tuple[list[Item], list[Item]]:
    """Split images into two parts with the same share of each class, the same on every machine."""
    parts: tuple[list[Item], list[Item]] = [], []
    by_label: dict[int, list[Item]] = {}
    for item in items:
        by_label.setdefault(item.label, []).append(item)
    for of_class in by_label.values():
        if len(of_class) < 2:
            raise DataError(f"the class of {of_class[0].file_name} has one image; --val requires two or more per class")
        of_class.sort(key=lambda item: hashlib.sha256(item.file_name.encode()).digest())
        count = min(max(round(fraction * len(of_class)), 1), len(of_class) - 1)
        parts[0].extend(of_class[count:])
        parts[1].extend(of_class[:count])
    return parts


def list_folder(folder: Path) -> tuple[list[str], list[File]]:
    """Return the names of the subfolders of a folder, and its files, both sorted, without what other programs left.

    Raises:
        DataError: the folder does not exist, or an entry cannot be read.
    """
    folders, files = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_left_behind(entry.name):
                    continue
                if _is_folder(entry):
                    folders.append(entry.name)
                else:
                    files.append(File(entry.name, entry.path, entry.stat().st_size))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{folder} is not a local directory; check the path") from None
    except OSError as error:
        raise_machine_fault(error, folder)
        raise DataError(f"{folder} cannot be read ({reason(error)}); check the path") from error
    return sorted(folders), sorted(files)


def list_classes(folder: Path) -> dict[str, list[File]]:
    """Return the files of each class folder.

    Raises:
        DataError: there are images outside of class folders or folders inside of them, or a name is invalid.
    """
    class_names, others = list_folder(folder)
    images = [file for file in others if has_image_extension(file.name)]
    if images:
        raise DataError(
            f"{folder} has {count(len(images), 'image')} outside of class folders (first: {images[0].name}); "
            f"expected them in {folder}/CLASS"
        )
    classes = {}
    for class_name in class_names:
        _check_class_name(folder, class_name)
        inner, files = list_folder(folder / class_name)
        if inner:
            raise DataError(f"class folder {folder / class_name} has the folder {inner[0]!r}; expected only images")
        for file in files:
            check_is_utf8(file)
        composed = normalize_name(class_name)
        if composed in classes:
            raise DataError(f"{folder} has two folders {composed!r}, which differ only in their encoding; merge them")
        classes[composed] = [file._replace(name=normalize_name(file.name)) for file in files]
    return classes


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return stat.S_ISDIR(entry.stat().st_mode)
    except OSError as error:
        raise_machine_fault(error, entry.path)
        fault = "is a dangling link" if entry.is_symlink() else f"cannot be read ({reason(error)})"
        raise DataError(f"{entry.path} {fault}; fix or remove it") from None


def _check_class_name(folder: Path, name: str) -> None:
    where = f"the name of the class folder {str(folder / name)!r}"
    if not _is_utf8(name):
        raise DataError(f"{where} is not UTF-8; rename it")
    if name != name.strip() or "\n" in name or "\r" in name:  # TFDS stores names as lines of a file, stripped
        raise DataError(f"{where} starts or ends with a space, or has a line break; rename it")
    if printable(name) != name:  # weights with such class names would be refused
        raise DataError(f"{where} has control characters; rename it")


def check_is_utf8(file: File) -> None:
    """Check that the name of a file is UTF-8.

    Raises:
        DataError: it is not.
    """
    if not _is_utf8(file.name):
        raise DataError(f"the name of the file {file.path!r} is not UTF-8; rename it")


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # surrogates represent other bytes in a file name
        return False
    return True


def _find_splits(folder: Path) -> dict[str, Path]:
    names, _ = list_folder(folder)
    if not names or ("train" not in names and not set(names) <= set(SPLITS)):
        return {"train": folder}
    others = sorted(set(names) - set(SPLITS))
    if others:
        if list_folder(folder / "train")[0]:
            raise DataError(f"{folder} has the folder {others[0]!r} next to train; expected only train, val and test")
        return {"train": folder}  # "train" is one of the classes
    if "train" not in names:
        raise DataError(f"{folder} has {listed(names)} but no train; expected train/CLASS, or only class folders")
    return map_splits(folder, names)


def map_splits(folder: Path, names: list[str]) -> dict[str, Path]:
    """Return the folder of each split, from names of `SPLITS`.

    Raises:
        DataError: two of them are the validation split.
    """
    parts = {SPLITS[name]: folder / name for name in names}
    if len(parts) < len(names):
        raise DataError(f"{folder} has {listed(names)}, of which two are the validation split; keep one of them")
    return parts
