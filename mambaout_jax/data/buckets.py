"""Access to buckets: timeouts, error messages, and the upload of prepared datasets."""

import logging
import os

from etils import epath
from tensorflow_datasets.core import constants
from tqdm import tqdm

from mambaout_jax.data.errors import DataError

REMOTE_SECONDS = 30
FILE_FORMAT = "array_record"
# Written last, because TFDS considers a folder with both files complete.
METADATA = (constants.FEATURES_FILENAME, constants.DATASET_INFO_FILENAME)

# These log errors that they also raise or recover from, some with a traceback.
for _name in ("gcsfs", "google.auth"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


def data_root(data_dir: str | None) -> epath.Path:
    """Return the folder of prepared datasets; None is the default folder of TFDS.

    Raises:
        DataError: the URL scheme is unknown.
    """
    try:
        return epath.Path(data_dir or constants.DATA_DIR).expanduser()
    except KeyError as error:
        raise DataError(f"data_dir {data_dir} begins with {error}; expected a local folder, gs:// or s3://") from None


def is_remote(path: epath.PathLike) -> bool:
    """Return whether a path is in a bucket, where files can be neither appended to nor locked."""
    return "://" in os.fspath(path)


def explain(error: Exception) -> str:
    """Return one line on an error of any bucket client, with the remedy if it is known."""
    if isinstance(error, ImportError):
        return "its client is not installed: pip install 'etils[epath-gcs]'"
    if isinstance(error, FileNotFoundError):  # with that permission, even an empty bucket is found
        return "the bucket does not exist, or the permission storage.buckets.get is missing"
    words = " ".join(str(error).split()) or type(error).__name__
    return f"{words}: gcloud auth application-default login" if getattr(error, "code", None) == 401 else words


def upload(folder: epath.Path, target: epath.Path) -> None:
    """Copy a prepared dataset file by file, metadata last, and skip existing files.

    Objects in a bucket only appear once they are complete, so an existing one of the same size is the same file.

    Raises:
        OSError: the bucket cannot be written.
    """
    files = sorted(folder.iterdir(), key=lambda path: (path.name in METADATA, path.name))
    sizes = {file: file.stat().length for file in files}
    try:
        target.mkdir(parents=True, exist_ok=True)
        present = {path.name for path in target.iterdir()}
        with tqdm(total=sum(sizes.values()), unit="B", unit_scale=True, desc="uploading") as bar:
            for file, size in sizes.items():
                copy = target / file.name
                if file.name not in present or copy.stat().length != size:
                    file.copy(copy, overwrite=True)
                bar.update(size)
    except Exception as error:  # each bucket client raises its own types
        raise OSError(f"uploading {folder} to {target} failed ({error}); rerun the same command to resume") from error
