"""Random access to the encoded images of any TFDS image-classification dataset prepared as ArrayRecord.

Datasets are read from their prepared files alone: neither the code that generated them nor TensorFlow is needed.
"""

import hashlib
import json
import threading

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import constants, read_only_builder
from tensorflow_datasets.proto import tf_example_pb2

from mambaout_jax.data.digits import Digits
from mambaout_jax.data.errors import DataError
from mambaout_jax.data.prepare import known_datasets, parse_name, prepare_digits, unknown_dataset

REMOTE_SECONDS = 30


class ImageSource:
    """Give records of one split by index: `source[i]` is {"image": encoded bytes, "label": int}.

    The order is that of the files and never changes. Sources pickle: workers open the files on their own.
    """

    def __init__(self, records, *, name: str, split: str, class_names: tuple[str, ...], fingerprint: str):
        self._records = records
        self.name = name
        self.split = split
        self.class_names = class_names
        self.fingerprint = fingerprint

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        try:
            record = self._records[index]
            # A fifth of the time of TFDS's own parser, which serves every kind of feature.
            features = tf_example_pb2.Example.FromString(record).features.feature
            return {"image": features["image"].bytes_list.value[0], "label": features["label"].int64_list.value[0]}
        except Exception as error:  # ArrayRecord and protobuf raise types of their own
            raise DataError(f"the record cannot be read ({type(error).__name__}: {error})") from error

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
    _check_features(name, info)
    try:
        shards = info.splits[split].file_instructions
        records = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES).data_source
    except NotImplementedError:
        raise DataError(
            f"dataset {name!r} is prepared as {info.file_format.value} in {builder.data_dir}; "
            f"move that folder away and run: {_prepare_command(name, data_dir)}"
        ) from None
    except (KeyError, ValueError):
        splits = ", ".join(f"{key} ({value.num_examples} images)" for key, value in info.splits.items())
        raise DataError(f"dataset {name!r} has no split {split!r}; it has {splits}") from None
    _check_shards(name, builder, shards, data_dir)
    source = ImageSource(
        records,
        name=f"{info.name}/{info.config_name}" if info.config_name else info.name,
        split=split,
        class_names=tuple(info.features["label"].names),
        fingerprint=_fingerprint(info, split, shards),
    )
    try:
        labelled = source[0]["label"] >= 0
    except DataError as error:
        raise DataError(
            f"split {split!r} of dataset {name!r} in {builder.data_dir}: {error}; "
            f"move that folder away and run: {_prepare_command(name, data_dir)}"
        ) from error
    if not labelled:
        raise DataError(f"split {split!r} of dataset {name!r} has no labels; choose another split")
    return source


def _open_builder(name: str, data_dir: str | None):
    dataset, _ = parse_name(name)
    root = epath.Path(data_dir or constants.DATA_DIR).expanduser()
    try:
        present = _within_seconds(REMOTE_SECONDS, lambda: _list_names(root))
    except (OSError, ImportError) as error:  # etils asks for the package that a kind of bucket needs
        raise DataError(f"data_dir {root} cannot be read ({error})") from error
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


def _list_names(root: epath.Path) -> list[str] | None:
    return [path.name for path in root.iterdir()] if root.exists() else None


def _prepare_command(name: str, data_dir: str | None) -> str:
    command = f"python -m mambaout_jax prepare {name}"
    return command if data_dir is None else f"{command} --data-dir={data_dir}"


def _check_features(name: str, info) -> None:
    image, label = (dict(info.features or {}).get(key) for key in ("image", "label"))
    if not isinstance(image, tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel):
        raise DataError(
            f"dataset {name!r} has the features {', '.join(info.features or {})}; expected one image feature named "
            "'image' and one class feature named 'label'"
        )
    if image.np_dtype.name not in ("uint8", "uint16"):
        raise DataError(f"dataset {name!r} has {image.np_dtype.name} images; expected 8 or 16 bits")


def _check_shards(name: str, builder, shards, data_dir: str | None) -> None:
    present = set(_list_names(builder.data_path))
    missing = [path for path in (epath.Path(shard.filename).name for shard in shards) if path not in present]
    if missing:
        raise DataError(
            f"dataset {name!r} lacks {len(missing)} of {len(shards)} files in {builder.data_dir} (first: {missing[0]});"
            f" copy them there, or move that folder away and run: {_prepare_command(name, data_dir)}"
        )


def _fingerprint(info, split: str, shards) -> str:
    content = {
        "shards": [(epath.Path(shard.filename).name, shard.skip, shard.take) for shard in shards],
        "bytes": {key: value.num_bytes for key, value in info.splits.items()},
        "lengths": {key: list(value.shard_lengths) for key, value in info.splits.items()},
        "classes": list(info.features["label"].names),
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    return f"{info.full_name}:{split}:{sum(shard.take for shard in shards)}:{digest}"


def _within_seconds(seconds: float, function):
    """Call `function` with a time limit: an unreachable bucket would hang for ever."""
    outcome = []

    def call():
        try:
            outcome.append((function(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:g} s")
    value, error = outcome[0]
    if error is not None:
        raise error
    return value
