"""Preparation of TFDS and generated datasets; the only module in which TFDS may import TensorFlow."""

import contextlib
import importlib.util
import io
import os
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import constants
from tqdm import tqdm

from mambaout_jax.data.errors import DataError
from mambaout_jax.data.names import (
    DIGITS,
    FROM_FILES,
    PATHFINDER,
    SCENES,
    data_root,
    join_name,
    parse_name,
    prepare_command,
    unknown_dataset,
)
from mambaout_jax.data.prepare.digits import Digits
from mambaout_jax.data.prepare.pathfinder import Pathfinder
from mambaout_jax.data.prepare.scenes import Scenes
from mambaout_jax.data.sources import FILE_FORMAT
from mambaout_jax.errors import reason
from mambaout_jax.extras import install_command
from mambaout_jax.machine import raise_machine_fault
from mambaout_jax.process import announced
from mambaout_jax.storage import is_remote

# Generated datasets that have several configs.
GENERATED: dict[str, type[tfds.core.GeneratorBasedBuilder]] = {PATHFINDER: Pathfinder, SCENES: Scenes}

# Written last, because TFDS considers a folder with both files complete.
METADATA = (constants.FEATURES_FILENAME, constants.DATASET_INFO_FILENAME)


def prepare_dataset(name: str, data_dir: str | None = None) -> str:
    """Download a TFDS dataset, write it as ArrayRecord, and return its folder; do nothing if it exists.

    Args:
        name: "dataset", "dataset/config" or "dataset/config:version".
        data_dir: folder of prepared datasets; None for the default of TFDS.

    Raises:
        DataError: the dataset is unknown, or its preparation requires a package or file that is missing.
        OSError: the download or a write failed.
    """
    dataset, options = parse_name(name)
    check_is_folder(data_root(data_dir))
    if dataset == DIGITS:
        return prepare_digits(data_dir)
    if dataset in GENERATED:
        return _prepare_generated(GENERATED[dataset], options, data_dir)
    if dataset in FROM_FILES:
        raise DataError(
            f"{dataset} is prepared from your own copy; run: {prepare_command(dataset, data_dir)} (see prepare --help)"
        )
    needs_tensorflow = DataError(
        f"the preparation of {dataset!r} requires TensorFlow (reading does not): {install_command('prepare')}"
    )
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format=FILE_FORMAT)
        # Checked before the download: most older builders list and read files with TensorFlow.
        if not builder.is_prepared() and _uses_tensorflow(builder) and not importlib.util.find_spec("tensorflow"):
            raise needs_tensorflow
        _generate(builder)
    except tfds.core.DatasetNotFoundError:
        raise DataError(unknown_dataset(dataset)) from None
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "tensorflow":
            raise needs_tensorflow from None
        raise DataError(f"the preparation of {dataset!r} requires another package: {error}") from error
    except AssertionError as error:  # raised by TFDS for files that must be downloaded manually
        raise DataError(f"dataset {dataset!r} cannot be prepared: {' '.join(str(error).split())}") from error
    except tfds.download.DownloadError as error:
        raise ConnectionError(f"the download of {dataset!r} failed: {error}") from error
    if builder.info.file_format.value != FILE_FORMAT:
        raise DataError(
            f"{builder.data_dir} has {name!r} as {builder.info.file_format.value}; "
            "move the folder away and rerun the command"
        )
    return str(builder.data_dir)


def ensure_prepared(name: str, data_dir: str | None = None) -> None:
    """Write `digits` or `scenes`, which require no download, if missing; do nothing for other datasets and for buckets.

    Called before a dataset is opened, so that the smallest experiment requires no preparation.

    Args:
        name: "dataset", "dataset/config" or "dataset/config:version".
        data_dir: folder of prepared datasets; None for the default of TFDS.

    Raises:
        DataError: the name is malformed, or `data_dir` cannot be written.
    """
    dataset, options = parse_name(name)
    if dataset not in (DIGITS, SCENES) or is_remote(data_root(data_dir)):
        return
    if dataset == DIGITS:
        prepare_digits(data_dir)
    else:
        _prepare_generated(Scenes, options, data_dir)


def prepare_digits(data_dir: str | None = None) -> str:
    """Write `digits` if it is missing, and return its folder.

    The dataset is written to a temporary folder and renamed when complete: a killed run leaves no incomplete dataset,
    and of two concurrent runs, the second uses the files of the first.

    Raises:
        DataError: `data_dir` cannot be written.
    """
    return _prepare_own(Digits, None, data_dir)


def _prepare_generated(
    builder_class: type[tfds.core.GeneratorBasedBuilder], options: dict, data_dir: str | None
) -> str:
    config = options.get("config", builder_class.DEFAULT_BUILDER_CONFIG_NAME)
    version = options.get("version", str(builder_class.VERSION))
    if config not in builder_class.builder_configs or version != str(builder_class.VERSION):
        known = ", ".join(f"{builder_class.name}/{name}" for name in builder_class.builder_configs)
        raise DataError(
            f"unknown dataset {builder_class.name}/{config}:{version}; expected one of {known}, in version "
            f"{builder_class.VERSION}"
        )
    return _prepare_own(builder_class, config, data_dir)


def _prepare_own(builder_class: type[tfds.core.GeneratorBasedBuilder], config: str | None, data_dir: str | None) -> str:
    root, name = data_root(data_dir), builder_class.name
    target = root / name / (config or "") / str(builder_class.VERSION)
    if is_complete(target):
        return str(target)
    if is_remote(root):
        raise DataError(
            f"ArrayRecord files cannot be written to {root}; prepare {name} in a local folder and upload it"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        workspace = tempfile.mkdtemp(prefix=f".{name}-", dir=root)
        try:
            builder = builder_class(data_dir=workspace, file_format=FILE_FORMAT, config=config)
            tfds.disable_progress_bar()
            sentence = f"Preparing {join_name(name, {'config': config})} in {target}."
            # TFDS announces a download, although there is none.
            with announced(sentence, partial(tqdm.write, file=sys.stderr)), contextlib.redirect_stdout(io.StringIO()):
                _generate(builder)
            os.rename(builder.data_dir, target)
        finally:
            shutil.rmtree(workspace, ignore_errors=True)
    except OSError as error:
        if not is_complete(target):
            raise_machine_fault(error, root, to_write=True)
            raise DataError(f"cannot write {name} to {root} ({reason(error)}); choose another data_dir") from error
    return str(target)


def is_complete(folder: epath.Path) -> bool:
    """Return whether a folder contains a complete dataset: TFDS writes its two metadata files last."""
    return all((folder / name).exists() for name in METADATA)


def check_is_folder(folder: os.PathLike) -> None:
    """Check that a folder exists or can be created.

    Raises:
        DataError: the folder or one of its parents is a file or a dangling link.
    """
    if is_remote(folder):
        return
    folder = Path(folder)
    nearest = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), None)
    if nearest and not os.path.isdir(nearest):
        raise DataError(f"cannot write to {folder}: {nearest} is not a directory; choose another data_dir")


def _generate(builder: tfds.core.DatasetBuilder) -> None:
    # By default, TFDS first looks for a copy in a bucket, which blocks without a network.
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))


def _uses_tensorflow(builder: tfds.core.DatasetBuilder) -> bool:
    return hasattr(sys.modules.get(type(builder).__module__), "tf")
