"""Images with annotated objects: COCO 2017, and folders of images with an annotation file in its format."""

import collections
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mambaout_jax.data.errors import DataError
from mambaout_jax.data.names import COCO, normalize_name
from mambaout_jax.data.prepare.dataset_writer import Dataset
from mambaout_jax.data.prepare.folders import VERSION
from mambaout_jax.data.prepare.shards import Annotations, Item, split_items
from mambaout_jax.errors import printable, reason
from mambaout_jax.machine import raise_machine_fault
from mambaout_jax.words import count

# The folders and files of COCO 2017, and the number of images of each.
COCO_SPLITS = {"train": ("train2017", 118_287), "validation": ("val2017", 5_000)}
# Training leaves out smaller images, as mmdetection does; in pixels.
MIN_TRAIN_SIDE = 32
# The largest coordinate, side or area of an annotation, in pixels.
MAX_VALUE = 1e9
# The largest coordinate of boxes and polygons, in longer sides of the image. pycocotools samples the edges of polygons
# without clipping them, so that far points would fill the memory.
MAX_MARGIN = 10
_KEYS = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation")


class Listed(NamedTuple):
    """The images and the categories of one annotation file."""

    items: list[Item]
    category_ids: tuple[int, ...]
    names: tuple[str, ...]


def read_coco(root: Path, expected: Mapping[str, int] | None = None) -> Dataset:
    """List the images of COCO 2017 with their objects.

    Args:
        root: has train2017, val2017 and annotations.
        expected: number of images of each split; None for those of COCO.

    Raises:
        DataError: files are missing, or annotations are inconsistent.
    """
    splits, first = {}, None
    for split, (folder, number) in COCO_SPLITS.items():
        file = root / "annotations" / f"instances_{folder}.json"
        listed = read_annotations(file, root / folder)
        number = expected[split] if expected else number
        if len(listed.items) != number:
            raise DataError(f"{file} has {count(len(listed.items), 'image')}; expected {number:,}")
        first = first or listed
        _check_same_categories(first, listed, file)
        splits[split] = listed.items
    return _dataset(COCO, first, splits, "COCO 2017: objects with boxes and masks.")


def read_coco_format(
    folder: Path, name: str, train: Path, validation: Path | float | None = None, *, skip_missing: bool = False
) -> Dataset:
    """List the images of a folder with their objects, from annotation files in COCO's format.

    Images are turned upright by their EXIF orientation, as most annotation tools do.

    Args:
        folder: contains the images, by the "file_name" of the annotations.
        name: name of the dataset.
        train: annotation file.
        validation: another annotation file, or the fraction of the images that become the split "validation".
        skip_missing: leave out images that do not exist.

    Raises:
        DataError: files are missing, or annotations are inconsistent.
    """
    listed = read_annotations(train, folder, skip_missing=skip_missing)
    splits = {"train": listed.items}
    if isinstance(validation, Path):
        other = read_annotations(validation, folder, skip_missing=skip_missing)
        _check_same_categories(listed, other, validation)
        splits["validation"] = other.items
    elif validation:
        splits["train"], splits["validation"] = split_items(listed.items, validation)
    description = f"Images with objects of {count(len(listed.names), 'class')}."
    return _dataset(name, listed, splits, description, exif_orientation=True)


def _dataset(
    name: str, listed: Listed, splits: dict[str, list[Item]], description: str, *, exif_orientation: bool = False
) -> Dataset:
    for split, items in splits.items():
        if not any(item.annotations.has_objects for item in items):
            raise DataError(
                f"split {split!r} has no annotated object that is not a crowd; check that the annotations belong to "
                "these images"
            )
    kept = [item for item in splits["train"] if _is_trainable(item)]
    if left_out := len(splits["train"]) - len(kept):
        print(
            f"{count(left_out, 'training image')} left out: without an object, or less than {MIN_TRAIN_SIDE} px wide "
            "or high"
        )
    if not kept:
        raise DataError(
            f"no training image has an object and is at least {MIN_TRAIN_SIDE} px wide and high; check the annotations"
        )
    return Dataset(
        name,
        VERSION,
        listed.names,
        {**splits, "train": kept},
        exif_orientation=exif_orientation,
        category_ids=listed.category_ids,
        about={"description": description},
    )


def _is_trainable(item: Item) -> bool:
    annotations = item.annotations
    return bool(annotations.classes) and min(annotations.height, annotations.width) >= MIN_TRAIN_SIDE


def read_annotations(file: Path, folder: Path, *, skip_missing: bool = False) -> Listed:
    """Read a COCO annotation file.

    Classes are the categories in the order of their ids.

    Raises:
        DataError: the file is damaged, an id is used twice or refers to nothing, an image does not exist, or the mask
            of an object differs in size from its image.
    """
    content = _read_json(file)
    images, annotations, categories = (
        _entries(content, name, file) for name in ("images", "annotations", "categories")
    )
    names = {entry["id"]: str(entry.get("name", entry["id"])) for entry in categories}
    for kind, entries in (("image", images), ("annotation", annotations), ("category", categories)):
        numbers = collections.Counter(entry["id"] for entry in entries)
        if twice := [key for key, number in numbers.items() if number > 1]:
            raise DataError(f"{file} has several entries with {kind} id {twice[0]}; expected one")
    category_ids = tuple(sorted(names))
    index_of = {key: index for index, key in enumerate(category_ids)}
    by_id = {entry["id"]: entry for entry in images}
    of_image: dict[int, list[dict[str, Any]]] = collections.defaultdict(list)
    faults = collections.Counter()
    for entry in annotations:
        of_image[_check_annotation(entry, by_id, index_of, file, faults)].append(
            {key: entry[key] for key in _KEYS if key in entry}
        )
    for fault, number in faults.items():
        print(f"{file.name}: {count(number, 'object')} {fault}")
    items, missing = [], []
    for key, entry in by_id.items():
        path = folder / str(entry["file_name"])
        try:
            size = os.stat(path).st_size
        except OSError as error:
            raise_machine_fault(error, path)
            missing.append(f"image {key} ({printable(str(path))})")
            continue
        own = of_image[key]
        annotated = Annotations(
            key,
            entry["height"],
            entry["width"],
            json.dumps(own, separators=(",", ":")),
            tuple(index_of[each["category_id"]] for each in own),
            any(not each.get("iscrowd") for each in own),
        )
        items.append(Item(normalize_name(str(entry["file_name"])), -1, str(path), 0, size, annotations=annotated))
    if missing and not skip_missing:
        raise DataError(f"{count(len(missing), 'image')} of {file} cannot be read (first: {missing[0]})")
    if missing:
        print(f"{file.name}: {count(len(missing), 'image')} that cannot be read, left out (first: {missing[0]})")
    if not items:
        raise DataError(f"{file} has no images")
    return Listed(items, category_ids, tuple(normalize_name(names[key]) for key in category_ids))


def _read_json(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise_machine_fault(error, file)
        raise DataError(f"{file} cannot be read ({reason(error)}); expected a COCO annotation file") from error
    if not isinstance(content, Mapping):
        raise DataError(f"{file} has no object at its top level; expected a COCO annotation file")
    return content


_REQUIRED = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
    "categories": ("id",),
}


def _entries(content: Mapping[str, Any], name: str, file: Path) -> Sequence[dict[str, Any]]:
    entries = content.get(name)
    if not isinstance(entries, list):
        raise DataError(f"{file} has no list {name!r}; expected a COCO annotation file")
    for number, entry in enumerate(entries):
        lacking = [key for key in _REQUIRED[name] if not isinstance(entry, Mapping) or key not in entry]
        if lacking:
            raise DataError(f"entry {number} of {name!r} in {file} has no {lacking[0]!r}")
        if not _is_integer(entry["id"], 0, 2**63 - 1):
            raise DataError(
                f"entry {number} of {name!r} in {file} has the id {entry['id']!r}; expected an integer from 0 on"
            )
        for key in ("height", "width") if name == "images" else ():
            if not _is_integer(entry[key], 1, 2**31 - 1):
                raise DataError(
                    f"image {entry['id']} of {file} has the {key} {entry[key]!r}; expected a positive integer"
                )
    return entries


def _is_integer(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_number(value: Any) -> bool:
    """Return whether a value is a finite number that can be a coordinate, a side or an area in pixels."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_VALUE


def _check_annotation(
    entry: dict[str, Any],
    images: Mapping[int, Mapping[str, Any]],
    index_of: Mapping[int, int],
    file: Path,
    faults: collections.Counter,
) -> int:
    """Check an annotation, add its area if it has none, count what training leaves out, and return its image id."""
    key = f"annotation {entry['id']} of {file}"
    for kind, known in (("image", images), ("category", index_of)):
        other = entry[f"{kind}_id"]
        if not _is_integer(other, 0, 2**63 - 1) or other not in known:
            raise DataError(f"{key} is of {kind} {other!r}, which the file does not have")
    box = entry["bbox"]
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        raise DataError(f"{key} has the box {box!r}; expected x, y, width and height")
    x, y, width, height = box
    image = images[entry["image_id"]]
    if entry.get("area") is None:
        entry["area"] = max(width, 0) * max(height, 0)
    if not _is_number(entry["area"]):
        raise DataError(f"{key} has area {entry['area']!r}; expected a number")
    if entry.get("iscrowd", 0) not in (0, 1):
        raise DataError(f"{key} has iscrowd {entry['iscrowd']!r}; expected 0 or 1")
    inside = x < image["width"] and y < image["height"] and x + width > 0 and y + height > 0
    if width < 1 or height < 1 or entry["area"] <= 0 or not inside:
        faults["not used in training: outside the image, empty, or less than 1 px wide or tall"] += 1
    if max(map(abs, (x, y, x + width, y + height))) > MAX_MARGIN * max(image["height"], image["width"]):
        raise DataError(f"{key} has the box {box!r}, far outside of its image of {image['width']}x{image['height']}")
    segmentation = entry.get("segmentation")
    if fault := _fault_of_mask(segmentation, [image["height"], image["width"]]):
        raise DataError(f"{key} has {fault}")
    if not isinstance(segmentation, Mapping) and not any(len(points) >= 6 for points in segmentation or ()):
        faults["with no polygon of three or more points: the box is used as the mask"] += 1
    return entry["image_id"]


def _fault_of_mask(segmentation: Any, size: list[int]) -> str | None:
    """Return what is wrong with the mask of an object of an image of (height, width); None for nothing."""
    if segmentation is None:
        return None
    if isinstance(segmentation, Mapping):
        if segmentation.get("size") != size:
            return f"a mask of (height, width) {segmentation.get('size')!r}; its image has {size}"
        counts = segmentation.get("counts")
        if isinstance(counts, str):
            counts = decode_counts(counts)
        if not isinstance(counts, list) or not all(_is_integer(number, 0, 2**31 - 1) for number in counts):
            return "an encoded mask whose counts are damaged"
        if sum(counts) != math.prod(size):
            return f"an encoded mask of {count(sum(counts), 'pixel')}; its image has {math.prod(size):,}"
        return None
    if not isinstance(segmentation, list) or not all(isinstance(points, list) for points in segmentation):
        return f"the mask {str(segmentation)[:50]!r}; expected a list of polygons or a run-length encoding"
    if not all(len(points) % 2 == 0 and all(map(_is_number, points)) for points in segmentation):
        return "a polygon that is not a list of x, y, x, y, ..."
    if any(abs(value) > MAX_MARGIN * max(size) for points in segmentation for value in points):
        return f"a polygon that is far outside of its image of (height, width) {size}"
    return None


def decode_counts(text: str) -> list[int] | None:
    """Return the lengths of the runs of COCO's compressed run-length encoding; None if it is damaged.

    A length is written in groups of 5 bits, lowest first, as characters from "0" on; 32 is added to all groups but the
    last. From the fourth length on, the difference to the length two before is written, which may be negative.
    Reference: `rleFrString` of pycocotools, which reads beyond the end of damaged strings.
    """
    counts, value, shift = [], 0, 0
    for character in text:
        group = ord(character) - ord("0")
        if not 0 <= group < 64 or shift > 30:
            return None
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value, shift = 0, 0
    return None if shift else counts


def _check_same_categories(first: Listed, other: Listed, file: Path) -> None:
    if (first.category_ids, first.names) != (other.category_ids, other.names):
        raise DataError(
            f"the categories of {file} differ from those of the training annotations; use the same ids and names"
        )
