"""Images with label maps, read from any TFDS dataset that has them, prepared as ArrayRecord."""

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds

from mambaout_jax.data import DataError, open_records
from mambaout_jax.data.label_maps import IGNORED
from mambaout_jax.tasks.sources import ClassSource
from mambaout_jax.words import count


class SegmentationSource(ClassSource):
    """Records of one split by index: `source[i]` is {"image": encoded bytes, "label_map": encoded bytes}.

    Args:
        size: (height, width) of every image; None if they differ.
        max_size: largest height and largest width of the images.
        others: arguments of `ClassSource`.
    """

    def __init__(
        self,
        records: Sequence[Mapping[str, Any]],
        *,
        size: tuple[int, int] | None,
        max_size: tuple[int, int],
        **others: Any,
    ):
        super().__init__(records, **others)
        self.size = size
        self.max_size = max_size

    def __getitem__(self, index: int) -> dict[str, bytes]:
        features, record = self._records[index], {}
        for name in ("image", "label_map"):
            values = features[name].bytes_list.value
            if not values:
                raise DataError(f"the record has no {name}")
            record[name] = values[0]
        return record


def open_source(name: str, split: str, data_dir: str | None = None) -> SegmentationSource:
    """Open one split of a prepared dataset of images with label maps.

    Args:
        name: "dataset", "dataset/config" or "dataset/config:version"; without a version, the newest prepared one.
        split: a split's name, or a slice of it such as "train[:90%]".
        data_dir: the folder of prepared datasets; the default is that of TFDS.

    Raises:
        DataError: the dataset, split or folder does not exist, or the dataset has no label maps.
    """
    records = open_records(name, split, data_dir)
    image, label_map = (records.features.get(feature) for feature in ("image", "label_map"))
    if not isinstance(image, tfds.features.Image) or not isinstance(label_map, tfds.features.LabeledImage):
        raise DataError(
            f"dataset {name!r} has the features {', '.join(records.features)}; expected an image feature named 'image' "
            "and a labeled image named 'label_map'"
        )
    class_names = tuple(label_map.names)
    if not 2 <= len(class_names) <= IGNORED:
        raise DataError(
            f"dataset {name!r} has {count(len(class_names), 'class')}; expected at least 2 and at most {IGNORED}"
        )
    shape = image.shape[:2]
    size = None if None in shape else tuple(shape)
    max_size = size or records.max_size
    if max_size is None:
        raise DataError(
            f"dataset {name!r} does not record the size of its largest image; prepare it with "
            "python -m mambaout_jax prepare"
        )
    return SegmentationSource(
        records,
        name=records.name,
        split=split,
        class_names=class_names,
        fingerprint=records.fingerprint(class_names),
        size=size,
        max_size=max_size,
        exif_orientation=records.exif_orientation,
    )
