"""Images with annotated objects, read from a prepared dataset.

Two kinds of datasets are read: those of `prepare coco` and `prepare coco-format`, whose records have annotations as
COCO has them, and datasets with maps of instances, such as `scenes`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mambaout_jax.data import DataError, open_records
from mambaout_jax.data.label_maps import decode_label_map
from mambaout_jax.tasks.detection.objects import Objects, objects_of_map, parse_annotations
from mambaout_jax.tasks.sources import ClassSource


@dataclasses.dataclass(frozen=True)
class Annotated:
    """A record: an encoded image, its id, and its objects."""

    image: bytes
    image_id: int
    objects: Objects


class DetectionSource(ClassSource):
    """Records of one split by index, each an `Annotated` image.

    Args:
        category_ids: of the classes, in annotation files.
        size: (height, width) of every image; None if they differ.
        groups: 1 for each image that is taller than wide and 0 for others, int8 (n,); batches of training images have
            one group. None if all images are equally large.
        others: arguments of `ClassSource`.
    """

    def __init__(
        self,
        records: Sequence[Mapping[str, Any]],
        *,
        category_ids: tuple[int, ...],
        size: tuple[int, int] | None,
        groups: np.ndarray | None,
        **others: Any,
    ):
        super().__init__(records, **others)
        self.category_ids = category_ids
        self.size = size
        self.groups = groups

    @property
    def labels(self) -> Mapping[str, Any]:
        """The names and the ids of the classes, and whether images are turned upright."""
        return {**super().labels, "category_ids": list(self.category_ids)}

    def __getitem__(self, index: int) -> Annotated:
        features = self._records[index]
        image = _bytes_of(features, "image")
        if "instance_map" in features:
            return Annotated(image, index, _read_map(features))
        image_id, height, width = features["image_info"].int64_list.value
        text = _bytes_of(features, "annotations").decode()
        index_of = {category: number for number, category in enumerate(self.category_ids)}
        return Annotated(image, image_id, parse_annotations(text, index_of, (height, width)))

    @cached_property
    def all_objects(self) -> dict[int, Objects]:
        """The objects of all images, by image id, in the order of the records; reads the whole split once."""
        found = (self[index] for index in range(len(self)))
        return {record.image_id: record.objects for record in found}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "all_objects"}


def _bytes_of(features: Mapping[str, Any], name: str) -> bytes:
    values = features[name].bytes_list.value
    if not values:
        raise DataError(f"the record has no {name}")
    return values[0]


def _read_map(features: Mapping[str, Any]) -> Objects:
    instances = decode_label_map(_bytes_of(features, "instance_map"))
    # TFDS stores (ymin, xmin, ymax, xmax).
    boxes = np.array(features["objects/bbox"].float_list.value, np.float32).reshape(-1, 4)[:, [1, 0, 3, 2]]
    return objects_of_map(instances, boxes, np.array(features["objects/label"].int64_list.value) - 1)


def open_source(name: str, split: str, data_dir: str | None = None) -> DetectionSource:
    """Open one split of a prepared dataset of images with objects.

    Args:
        name: "dataset", "dataset/config" or "dataset/config:version"; without a version, the newest prepared one.
        split: a split's name, or a slice of it such as "train[:90%]".
        data_dir: the folder of prepared datasets; the default is that of TFDS.

    Raises:
        DataError: the dataset, split or folder does not exist, or the dataset has no objects with masks.
    """
    records = open_records(name, split, data_dir)
    features = records.features
    image = features.get("image")
    if not isinstance(image, tfds.features.Image) or not {"instance_map", "annotations"} & features.keys():
        raise DataError(
            f"dataset {name!r} has the features {', '.join(features)}; expected an image feature named 'image', and "
            "a feature 'annotations' or 'instance_map', as python -m mambaout_jax prepare coco-format writes them"
        )
    if "annotations" in features:
        class_names = tuple(features["categories"].feature.names)
        category_ids = tuple(records.category_ids)
    else:  # the first class is the background
        class_names = tuple(features["objects"].feature["label"].names[1:])
        category_ids = tuple(range(1, len(class_names) + 1))
    size = None if None in image.shape[:2] else tuple(image.shape[:2])
    portrait = records.portrait
    if size is None and portrait is None:
        raise DataError(
            f"dataset {name!r} does not record which images are taller than wide; prepare it with "
            "python -m mambaout_jax prepare"
        )
    return DetectionSource(
        records,
        name=records.name,
        split=split,
        class_names=class_names,
        fingerprint=records.fingerprint(class_names),
        exif_orientation=records.exif_orientation,
        category_ids=category_ids,
        size=size,
        groups=None if size is not None else np.frombuffer(portrait.encode(), np.int8) - ord("0"),
    )
