"""Upload of prepared datasets to a bucket."""

from etils import epath
from tqdm import tqdm

from mambaout_jax.data.prepare.builders import METADATA
from mambaout_jax.data.sources import ORIGIN
from mambaout_jax.errors import reason
from mambaout_jax.machine import MachineError, describe_fault


def upload(folder: epath.Path, target: epath.Path) -> None:
    """Copy a prepared dataset file by file, its digest first and its metadata last, and skip existing files.

    Objects in a bucket only appear once they are complete, so an existing one of the same size is the same file if it
    belongs to a dataset of the same digest. Otherwise all files are replaced.

    Raises:
        MachineError: the bucket cannot be written.
    """
    names = [path.name for path in folder.iterdir()]
    files = sorted(names, key=lambda name: (name in METADATA, name != ORIGIN, name))
    sizes = {name: (folder / name).stat().length for name in files}
    try:
        target.mkdir(parents=True, exist_ok=True)
        present = {path.name for path in target.iterdir()}
        if ORIGIN not in present or (target / ORIGIN).read_text() != (folder / ORIGIN).read_text():
            for name in sorted(present, key=lambda name: name not in METADATA):
                (target / name).unlink()
            present = set()
        with tqdm(total=sum(sizes.values()), unit="B", unit_scale=True, desc="uploading") as bar:
            for name, size in sizes.items():
                copy = target / name
                if name not in present or copy.stat().length != size:
                    (folder / name).copy(copy, overwrite=True)
                bar.update(size)
    except Exception as error:  # each bucket client raises its own types
        words = describe_fault(error) or reason(error)
        raise MachineError(
            f"uploading {folder} to {target} failed ({words}); rerun the same command to resume"
        ) from error
