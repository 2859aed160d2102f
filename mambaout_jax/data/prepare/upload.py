"""Upload of prepared datasets to a bucket."""

from etils import epath
from tqdm import tqdm

from mambaout_jax.data.prepare.builders import METADATA


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
