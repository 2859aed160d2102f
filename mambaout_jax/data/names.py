"""Dataset names: parsing, known names, the folder of datasets, and the command that prepares a dataset."""

import os
import unicodedata
from collections.abc import Iterable

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import constants, naming

from mambaout_jax.checks import suggest
from mambaout_jax.data.errors import DataError
from mambaout_jax.storage import find_pattern, find_undecodable, find_unknown_home

DIGITS, PATHFINDER, SCENES = "digits", "pathfinder", "scenes"
IMAGENET, ADE20K, COCO = "imagenet2012", "ade20k", "coco2017"
# TFDS has the default configs of its own datasets; our builders are not imported for reading.
DEFAULT_CONFIGS = {PATHFINDER: "64", SCENES: "128"}
_OURS = (DIGITS, PATHFINDER, SCENES, ADE20K, COCO)
# Datasets that cannot be downloaded, with the arguments of `prepare` that name the user's files.
FROM_FILES = {IMAGENET: "imagenet --tars=DIR", ADE20K: "ade20k --zip=FILE", COCO: "coco --root=DIR"}


def parse_name(name: str) -> tuple[str, dict]:
    """Split "dataset/config:version" into the dataset and a dict with "config" and "version", if present.

    Raises:
        DataError: the name is malformed.
    """
    try:
        dataset, options = naming.parse_builder_name_kwargs(name)
    except (ValueError, TypeError):
        raise DataError(
            f"{name!r} is not a dataset name; expected dataset, dataset/config or dataset:version"
        ) from None
    return str(dataset), options


def normalize_name(name: str) -> str:
    """Return a name of a class or file in composed characters (NFC); macOS stores names decomposed."""
    return unicodedata.normalize("NFC", name)


def join_name(dataset: str, options: dict) -> str:
    """Return "dataset/config:version", the inverse of `parse_name`; config and version may be missing or None."""
    config, version = options.get("config"), options.get("version")
    return dataset + (f"/{config}" if config else "") + (f":{version}" if version else "")


def known_datasets() -> list[str]:
    """Return the names of all datasets that can be prepared: those of TFDS and ours."""
    return sorted({*tfds.list_builders(with_community_datasets=False), *_OURS})


def unknown_dataset(dataset: str, others: Iterable[str] = ()) -> str:
    """Return the error message for a name that is neither known nor in `others`, with the nearest name."""
    near = suggest(dataset, [*known_datasets(), *others])
    remedy = "; tensorflow.org/datasets/catalog lists the names; for your own images, see prepare --help"
    return f"unknown dataset {dataset!r}{near or remedy}"


def data_root(data_dir: str | None) -> epath.Path:
    """Return the folder of prepared datasets; None is the default folder of TFDS.

    Raises:
        DataError: the URL scheme or the home folder is unknown, or the path is a pattern or not UTF-8.
    """
    folder = os.path.expanduser(data_dir or constants.DATA_DIR)
    if fault := find_unknown_home(folder) or find_undecodable(folder) or find_pattern(folder):
        raise DataError(f"data_dir {folder} {fault}")
    try:
        return epath.Path(folder)
    except KeyError as error:
        raise DataError(f"data_dir {data_dir} begins with {error}; expected a local folder, gs:// or s3://") from None


def prepare_command(name: str, data_dir: str | None) -> str:
    """Return the shell command that prepares a dataset in `data_dir`; None for the default folder of TFDS."""
    command = f"python -m mambaout_jax prepare {FROM_FILES.get(name.partition(':')[0], name)}"
    return command if data_dir is None else f"{command} --data-dir={data_dir}"
