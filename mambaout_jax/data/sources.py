"""Random access to the encoded images of any TFDS image-classification dataset prepared as ArrayRecord.

Datasets are read from their prepared files alone: neither the code that generated them nor TensorFlow is needed.
"""

import hashlib
import json

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import read_only_builder
from tensorflow_datasets.proto import tf_example_pb2

from mambaout_jax.data.buckets import data_root
from mambaout_jax.data.digits import Digits
from mambaout_jax.data.errors import DataError
from mambaout_jax.data.prepare.builders import known_datasets, parse_name, prepare_digits, unknown_dataset
from mambaout_jax.data.shard_check import check_shards, list_names

# The features that labels are read from, and the most labels that an image may have in each.
LABEL_FEATURES = {
    "label": 1,
    # Reference: Beyer et al., Are we done with ImageNet?, 2020: real.json has 0 to 9 labels for each of 50,000 images.
    "real_label": 9,
}


class ImageSource:
    """Give records of one split by index: `source[i]` is {"image": encoded bytes, "label": int}.

    Where images may have several labels, or none, `max_labels` is more than 1 and "label" is a tuple. The order is
    that of the files and never changes. Sources pickle: workers open the files on their own.
    """

    def __init__(
        self, records, *, name: str, split: str, class_names: tuple[str, ...], fingerprint: str, feature: str = "label"
    ):
        self._records = records
        self._feature = feature
        self.name = name
        self.split = split
        self.class_names = class_names
        self.fingerprint = fingerprint
        self.max_labels = LABEL_FEATURES[feature]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        image, labels = self._read(index)
        for label in labels:
            if not 0 <= label < len(self.class_names):
                raise DataError(f"its label is {label}; 0 to {len(self.class_names) - 1} is expected")
        return {"image": image, "label": labels[0] if self.max_labels == 1 else labels}

    def is_labelled(self) -> bool:
        """Tell whether the split has labels: TFDS gives -1 to each image of one that has not."""
        return self._read(0)[1][:1] != (-1,)

    def _read(self, index: int) -> tuple[bytes, tuple[int, ...]]:
        try:
            record = self._records[index]
            # Quicker than TFDS's own parser, which serves every kind of feature.
            features = tf_example_pb2.Example.FromString(record).features.feature
            image = features["image"].bytes_list.value[0]
            labels = tuple(features[self._feature].int64_list.value)
        except Exception as error:  # ArrayRecord and protobuf raise types of their own
            raise DataError(f"the record cannot be read ({type(error).__name__}: {error})") from error
        if len(labels) > self.max_labels or (self.max_labels == 1 and not labels):
            expected = "1" if self.max_labels == 1 else f"0 to {self.max_labels}"
            raise DataError(f"it has {len(labels)} labels; {expected} is expected")
        return image, labels

    def __repr__(self) -> str:
        return f"ImageSource({self.fingerprint})"


def open_source(name: str, split: str, data_dir: str | None = None) -> ImageSource:
    """Open one split of a prepared dataset; prepare `digits` if it is not there yet.

    The fingerprint covers name, config, version, split, the records of each shard and the split's size in bytes:
    equal data prepared elsewhere has the same one.

    Args:
        name: "dataset", "dataset/config" or "dataset/config:version"; without a version, the newest prepared one.
        split: a split's name, or a slice of it such as "train[:90%]".
        data_dir: the folder that datasets are prepared in; the default is TFDS's own.

    Raises:
        DataError: there is no such dataset, split or folder, or the dataset is not one of labelled images.
    """
    builder = _open_builder(name, data_dir)
    info = builder.info
    feature = _label_feature(name, info)
    command = _prepare_command(name, data_dir)
    try:
        shards = info.splits[split].file_instructions
        records = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES).data_source
    except NotImplementedError:
        raise DataError(
            f"dataset {name!r} is prepared as {info.file_format.value} in {builder.data_dir}; "
            f"move that folder away and run: {command}"
        ) from None
    except (KeyError, ValueError):
        splits = ", ".join(f"{key} ({value.num_examples} images)" for key, value in info.splits.items())
        raise DataError(f"dataset {name!r} has no split {split!r}; it has {splits}") from None
    check_shards(f"split {split!r} of dataset {name!r}", builder.data_path, shards, command)
    class_names = tuple(_class_feature(info, feature).names)
    source = ImageSource(
        records,
        name=f"{info.name}/{info.config_name}" if info.config_name else info.name,
        split=split,
        class_names=class_names,
        fingerprint=_fingerprint(info, split, shards, class_names),
        feature=feature,
    )
    try:
        labelled = source.is_labelled()
    except DataError as error:
        raise DataError(
            f"split {split!r} of dataset {name!r} in {builder.data_dir}: {error}; "
            f"move that folder away and run: {command}"
        ) from error
    if not labelled:
        raise DataError(f"split {split!r} of dataset {name!r} has no labels; choose another split")
    return source


def _open_builder(name: str, data_dir: str | None):
    dataset, _ = parse_name(name)
    root = data_root(data_dir)
    try:
        present = list_names(root)
    except DataError as error:
        raise DataError(f"data_dir {error}") from error
    if dataset == Digits.name:
        prepare_digits(data_dir)
    elif present is None and data_dir is not None:
        raise DataError(f"data_dir {data_dir} does not exist; to create it, run: {_prepare_command(name, data_dir)}")
    try:
        return read_only_builder.builder_from_files(name, data_dir=root)
    except tfds.core.DatasetNotFoundError:
        raise DataError(_explain_missing(name, dataset, root, present or [], data_dir)) from None


def _explain_missing(name: str, dataset: str, root, present: list[str], data_dir: str | None) -> str:
    if dataset not in present and dataset not in known_datasets():
        return unknown_dataset(dataset, present)
    features = [file for depth in ("*", "*/*") for file in (root / dataset).glob(f"{depth}/features.json")]
    prepared = sorted(file.parent.relative_to(root).as_posix() for file in features)
    others = f" (but {', '.join(prepared)} is)" if prepared else ""
    return f"dataset {name!r} is not prepared in {root}{others}; run: {_prepare_command(name, data_dir)}"


def _prepare_command(name: str, data_dir: str | None) -> str:
    # ImageNet cannot be downloaded: the command takes the files that a person has.
    what = "imagenet --tars=DIR" if name.partition(":")[0] == "imagenet2012" else name
    command = f"python -m mambaout_jax prepare {what}"
    return command if data_dir is None else f"{command} --data-dir={data_dir}"


def _label_feature(name: str, info) -> str:
    features = dict(info.features or {})
    image, found = features.get("image"), [feature for feature in LABEL_FEATURES if _class_feature(info, feature)]
    if not isinstance(image, tfds.features.Image) or not found:
        raise DataError(
            f"dataset {name!r} has the features {', '.join(features)}; expected one image feature named 'image' and "
            "one class feature named 'label' (or a sequence of them named 'real_label')"
        )
    if image.np_dtype.name not in ("uint8", "uint16"):
        raise DataError(f"dataset {name!r} has {image.np_dtype.name} images; expected 8 or 16 bits")
    return found[0]


def _class_feature(info, name: str) -> tfds.features.ClassLabel | None:
    feature = dict(info.features or {}).get(name)
    if LABEL_FEATURES[name] > 1:
        feature = getattr(feature, "feature", None)
    return feature if isinstance(feature, tfds.features.ClassLabel) else None


def _fingerprint(info, split: str, shards, class_names: tuple[str, ...]) -> str:
    content = {
        "shards": [(epath.Path(shard.filename).name, shard.skip, shard.take) for shard in shards],
        "bytes": {key: value.num_bytes for key, value in info.splits.items()},
        "lengths": {key: list(value.shard_lengths) for key, value in info.splits.items()},
        "classes": list(class_names),
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    return f"{info.full_name}:{split}:{sum(shard.take for shard in shards)}:{digest}"
