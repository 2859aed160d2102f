"""Images with class labels, read from any TFDS image-classification dataset prepared as ArrayRecord."""

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds

from mambaout_jax.data import DataError, Records, open_records
from mambaout_jax.data.names import normalize_name, prepare_command
from mambaout_jax.errors import printable
from mambaout_jax.tasks.sources import ClassSource
from mambaout_jax.words import count

# The label features, and the largest number of labels of an image in each.
LABEL_FEATURES = {
    "label": 1,
    # Reference: Beyer et al., Are we done with ImageNet?, 2020: real.json has 0 to 9 labels for each of 50,000 images.
    "real_label": 9,
}


class ImageSource(ClassSource):
    """Records of one split by index: `source[i]` is {"image": encoded bytes, "label": int}.

    In datasets whose images have several labels or none, `max_labels` is more than 1 and "label" is a tuple.

    Args:
        feature: the name of the label feature, a key of LABEL_FEATURES.
        others: arguments of `ClassSource`.
    """

    def __init__(self, records: Sequence[Mapping[str, Any]], *, feature: str = "label", **others: Any):
        super().__init__(records, **others)
        self._feature = feature
        self.max_labels = LABEL_FEATURES[feature]

    def __getitem__(self, index: int) -> dict:
        image, labels = self._read(index)
        for label in labels:
            if not 0 <= label < len(self.class_names):
                raise DataError(f"its label is {label}; expected 0 to {len(self.class_names) - 1}")
        return {"image": image, "label": labels[0] if self.max_labels == 1 else labels}

    def is_labeled(self) -> bool:
        """Return whether the split has labels. Its first record decides: TFDS labels all images with -1 otherwise."""
        return self._read(0)[1][:1] != (-1,)

    def check_trainable(self) -> None:
        """Check that every image has exactly one label.

        Raises:
            DataError: images may have several.
        """
        if self.max_labels != 1:
            raise DataError(f"images of {self.name!r} have several labels each; use this dataset for evaluation only")

    def _read(self, index: int) -> tuple[bytes, tuple[int, ...]]:
        features = self._records[index]
        images, labels = features["image"].bytes_list.value, tuple(features[self._feature].int64_list.value)
        if not images:
            raise DataError("the record has no image")
        if len(labels) > self.max_labels or (self.max_labels == 1 and not labels):
            expected = "1" if self.max_labels == 1 else f"0 to {self.max_labels}"
            raise DataError(f"the record has {count(len(labels), 'label')}; expected {expected}")
        return images[0], labels


def open_source(name: str, split: str, data_dir: str | None = None) -> ImageSource:
    """Open one split of a prepared dataset of labeled images.

    Args:
        name: "dataset", "dataset/config" or "dataset/config:version"; without a version, the newest prepared one.
        split: a split's name, or a slice of it such as "train[:90%]".
        data_dir: the folder of prepared datasets; the default is that of TFDS.

    Raises:
        DataError: the dataset, split or folder does not exist, or the dataset has no labeled images.
    """
    records = open_records(name, split, data_dir)
    feature = _label_feature(name, records)
    class_names = tuple(map(normalize_name, _class_feature(records, feature).names))
    if bad := next((name for name in class_names if printable(name) != name), None):
        raise DataError(
            f"dataset {name!r} has the class {bad!r}, whose name has control characters; prepare it with other names: "
            "weights with such class names cannot be exported"
        )
    source = ImageSource(
        records,
        name=records.name,
        split=split,
        class_names=class_names,
        fingerprint=records.fingerprint(class_names),
        feature=feature,
        exif_orientation=records.exif_orientation,
    )
    try:
        labeled = source.is_labeled()
    except DataError as error:
        raise DataError(
            f"split {split!r} of dataset {name!r} in {records.info.data_dir}: {error}; "
            f"move that folder away and run: {prepare_command(name, data_dir)}"
        ) from error
    if not labeled:
        raise DataError(f"split {split!r} of dataset {name!r} has no labels; choose another split")
    return source


def _label_feature(name: str, records: Records) -> str:
    features = records.features
    image, found = features.get("image"), [feature for feature in LABEL_FEATURES if _class_feature(records, feature)]
    if not isinstance(image, tfds.features.Image) or not found:
        raise DataError(
            f"dataset {name!r} has the features {', '.join(features)}; expected one image feature named 'image' and "
            "one class feature named 'label' (or a sequence of them named 'real_label')"
        )
    if image.np_dtype.name not in ("uint8", "uint16"):
        raise DataError(f"dataset {name!r} has {image.np_dtype.name} images; expected 8 or 16 bits")
    return found[0]


def _class_feature(records: Records, name: str) -> tfds.features.ClassLabel | None:
    feature = records.features.get(name)
    if LABEL_FEATURES[name] > 1:
        feature = getattr(feature, "feature", None)
    return feature if isinstance(feature, tfds.features.ClassLabel) else None
