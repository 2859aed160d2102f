"""Images with label maps: ADE20K, and folders of images and masks with the same names."""

import functools
import io
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from mambaout_jax.data.errors import DataError
from mambaout_jax.data.label_maps import IGNORED, check_label_map, decode_label_map
from mambaout_jax.data.names import ADE20K, normalize_name
from mambaout_jax.data.prepare.dataset_writer import Dataset
from mambaout_jax.data.prepare.folders import (
    SPLITS,
    VERSION,
    File,
    check_is_utf8,
    has_image_extension,
    list_folder,
    map_splits,
)
from mambaout_jax.data.prepare.shards import Item, LabelMapFile, split_items
from mambaout_jax.data.prepare.shards import read_label_map as read_label_map_file
from mambaout_jax.errors import printable, reason
from mambaout_jax.machine import raise_machine_fault
from mambaout_jax.words import count, listed

CLASSES_FILE = "classes.txt"
# The folders of ADEChallengeData2016.zip, and the number of images that each has.
ADE20K_FOLDER = "ADEChallengeData2016"
ADE20K_SPLITS = {"training": ("train", 20_210), "validation": ("validation", 2_000)}
ADE20K_CLASSES = 150


def read_label_map(
    encoded: bytes, image: bytes, size: tuple[int, int], *, num_classes: int, source: str, zero_is_ignored: bool
) -> tuple[bytes, set[int]]:
    """Check a label map, and return it as a gray PNG, with the set of its labels, `IGNORED` included.

    Args:
        image: the bytes of the image.
        size: (height, width) of the image as displayed.
        source: the source of the classes, for messages.
        zero_is_ignored: 0 stands for no class and k for class k - 1, as in ADE20K.

    Raises:
        DataError: it is not a map of labels of the size of the image.
    """
    labels = decode_label_map(encoded)
    stored_size = Image.open(io.BytesIO(image)).size[::-1]
    if labels.shape == stored_size != size:
        raise DataError(
            "the label map has the size of its image before the rotation by the EXIF orientation; rotate the label "
            "map, or remove the EXIF orientation of the image"
        )
    check_label_map(labels, size, num_classes, source=source, zero_is_ignored=zero_is_ignored)
    if zero_is_ignored:
        labels = np.where(labels == 0, IGNORED, labels - (labels != IGNORED)).astype(np.uint8)
    return cv2.imencode(".png", labels)[1].tobytes(), set(np.unique(labels).tolist())


def read_ade20k(folder: Path) -> Dataset:
    """List the images and label maps of ADE20K, as its challenge of 2016 has them.

    Args:
        folder: ADEChallengeData2016, or the folder that contains it.

    Raises:
        DataError: files are missing.
    """
    root = folder / ADE20K_FOLDER if (folder / ADE20K_FOLDER).is_dir() else folder
    names = _read_object_names(root / "objectInfo150.txt")
    splits = {}
    for inner, (split, expected) in ADE20K_SPLITS.items():
        splits[split] = _pair(root / "images" / inner, root / "annotations" / inner)
        if len(splits[split]) != expected:
            raise DataError(
                f"{root / 'images' / inner} has {count(len(splits[split]), 'image')}; expected {expected:,}"
            )
    return _dataset(ADE20K, names, splits, zero_is_ignored=True, description="ADE20K, 150 classes (2016).")


def extract_ade20k(archive: Path, target: Path) -> Path:
    """Extract ADEChallengeData2016.zip into a folder, and return it; files that are complete there are kept.

    Raises:
        DataError: the file is not a zip file, or is damaged.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            for entry in file.infolist():
                path = target / entry.filename
                if not path.resolve().is_relative_to(target.resolve()):
                    raise DataError(f"{archive} has the file {printable(entry.filename)}, outside of its folder")
                if entry.is_dir() or (path.exists() and path.stat().st_size == entry.file_size):
                    continue
                try:
                    file.extract(entry, target)
                except BaseException:
                    path.unlink(missing_ok=True)  # a damaged file may have the size of a complete one
                    raise
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        # RuntimeError: encrypted files, and compressions that zipfile does not have.
        raise_machine_fault(error, archive)
        raise DataError(f"{archive} cannot be read ({reason(error)}); download it again") from error
    return target


def _read_object_names(file: Path) -> tuple[str, ...]:
    """Return the first name of each class, by the last column of the table of ADE20K."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise_machine_fault(error, file)
        raise DataError(f"{file} cannot be read ({reason(error)}); expected the folder {ADE20K_FOLDER}") from error
    rows = [line.split("\t") for line in lines if line.strip()][1:]
    names = tuple(row[-1].split(",")[0].strip() for row in rows)
    if len(names) != ADE20K_CLASSES:
        raise DataError(f"{file} has {count(len(names), 'class')}; expected {ADE20K_CLASSES}")
    # Two of them share their first name.
    return tuple(name if names.count(name) == 1 else rows[index][-1].strip() for index, name in enumerate(names))


def read_mask_folder(folder: Path, name: str, validation: float = 0.0) -> Dataset:
    """List DIR/{train,val,test}/{images,masks}/* or DIR/{images,masks}/*; the latter is a single split, "train".

    The mask of an image has the same name, up to its ending. DIR/classes.txt has the name of each class, one a line;
    without it, classes are named by their numbers, as many as the masks have.

    Args:
        name: name of the dataset.
        validation: fraction of the images that become the split "validation"; 0 for none.

    Raises:
        DataError: the folder has another layout, or an image has no mask or a mask no image.
    """
    inner = list_folder(folder)[0]
    named = [part for part in inner if part in SPLITS]
    if "images" in inner and named:
        raise DataError(f"{folder} has images next to {listed(named)}; keep one of the two layouts")
    parts = {"train": folder} if "images" in inner else map_splits(folder, named)
    if "train" not in parts:
        raise DataError(f"{folder} has neither images and masks nor train/images and train/masks")
    splits = {split: _pair(part / "images", part / "masks") for split, part in parts.items()}
    if validation:
        if "validation" in splits:
            raise DataError(f"{folder} has a validation split already, in {parts['validation']}; leave out --val")
        splits["train"], splits["validation"] = split_items(splits["train"], validation)
    names = _read_class_names(folder / CLASSES_FILE) or _number_classes(splits)
    description = f"Images with masks of {count(len(names), 'class')}, from folders."
    return _dataset(name, names, splits, zero_is_ignored=False, description=description)


def _dataset(
    name: str, names: tuple[str, ...], splits: dict[str, list[Item]], *, zero_is_ignored: bool, description: str
) -> Dataset:
    source = "ADE20K" if zero_is_ignored else CLASSES_FILE
    read_labels = functools.partial(
        read_label_map, num_classes=len(names), source=source, zero_is_ignored=zero_is_ignored
    )
    about = {"description": description}
    return Dataset(
        name, VERSION, names, splits, exif_orientation=not zero_is_ignored, read_labels=read_labels, about=about
    )


def _pair(images: Path, masks: Path) -> list[Item]:
    """Return the images of a folder with the masks of another one."""
    listed = [_by_stem(folder) for folder in (images, masks)]
    for own, other, what, folder in (
        (listed[0], listed[1], "mask", masks), (listed[1], listed[0], "image", images)
    ):  # fmt: skip
        if lonely := sorted(own.keys() - other.keys()):
            raise DataError(
                f"{own[lonely[0]].path} has no {what} in {folder} ({count(len(lonely), 'file')} in all); expected "
                "pairs with the same name"
            )
    return [
        Item(file.name, -1, file.path, 0, file.size, LabelMapFile(listed[1][stem].path, listed[1][stem].size))
        for stem, file in listed[0].items()
    ]


def _by_stem(folder: Path) -> dict[str, File]:
    found: dict[str, File] = {}
    inner, files = list_folder(folder)
    if inner:
        raise DataError(f"{folder} has the folder {inner[0]!r}; expected only images")
    for file in files:
        if not has_image_extension(file.name):
            continue
        check_is_utf8(file)
        name = normalize_name(file.name)
        if (stem := Path(name).stem) in found:
            raise DataError(f"{folder} has two images with the name {stem!r}; rename one of them")
        found[stem] = file._replace(name=name)
    if not found:
        raise DataError(f"{folder} has no images")
    return found


def _read_class_names(file: Path) -> tuple[str, ...] | None:
    try:
        lines = file.read_text(encoding="utf-8-sig").rstrip().split("\n")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise_machine_fault(error, file)
        raise DataError(f"{file} cannot be read ({reason(error)})") from error
    names: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        name = normalize_name(line.strip())
        if not name:
            raise DataError(f"line {number} of {file} is empty; expected the name of class {number - 1}")
        if printable(name) != name:  # weights with such class names would be refused
            raise DataError(f"line {number} of {file}, {name!r}, has control characters; remove them")
        if name in names:
            raise DataError(f"lines {names[name]} and {number} of {file} are both {name!r}; rename one of the classes")
        names[name] = number
    if not 2 <= len(names) <= IGNORED:
        raise DataError(f"{file} has {count(len(names), 'name')}; expected at least 2 and at most {IGNORED}")
    return tuple(names)


def _number_classes(splits: dict[str, list[Item]]) -> tuple[str, ...]:
    """Return the numbers of the classes, up to the highest one in all masks."""
    highest = 1
    for items in splits.values():
        for item in items:
            try:
                labels = decode_label_map(read_label_map_file(item))
            except DataError:  # named when the files are written
                continue
            highest = max(highest, int(labels[labels != IGNORED].max(initial=0)))
    return tuple(map(str, range(highest + 1)))
