"""Missing, truncated or wrong files are errors when a split is opened."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import tensorflow_datasets as tfds
from etils import epath

from mambaout_jax.data import DataError, shard_check
from mambaout_jax.tasks.classification.source import open_source
from tests.data import photos


def test_a_missing_shard_is_named(data_dir, tmp_path):
    (shard,) = copied_shards(data_dir, tmp_path)
    shard.unlink()
    with pytest.raises(DataError, match=f"1 of 1 file of .*first: {re.escape(shard.name)} is missing.*; copy them"):
        open_source("photos", "train", str(tmp_path))


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
def test_a_truncated_shard_is_an_error(data_dir, tmp_path, keep):
    (shard,) = copied_shards(data_dir, tmp_path)
    cut(shard, keep)
    with pytest.raises(
        DataError,
        match=r"1 of 1 file of split 'train' of dataset 'photos' .*truncated or .*; copy .* move the folder away and"
        " run: ",
    ):
        open_source("photos", "train", str(tmp_path))


def test_all_shards_of_the_split_are_checked_and_no_others(tmp_path):
    config = tfds.download.DownloadConfig(try_download_gcs=False, num_shards=4)
    photos.Photos(data_dir=tmp_path, config="whole", file_format="array_record").download_and_prepare(
        download_config=config
    )
    shards = sorted(tmp_path.glob("photos/whole/*/photos-train*"))
    assert len(shards) == 4
    cut(shards[3], 0.5)
    with pytest.raises(DataError, match=f"1 of 4 files .*first: {re.escape(shards[3].name)} is truncated"):
        open_source("photos", "train", str(tmp_path))
    assert len(open_source("photos", "train[:25%]", str(tmp_path))) == 6
    assert len(open_source("photos", "validation", str(tmp_path))) == photos.NUM_VALIDATION


def test_a_shard_of_another_length_is_named(data_dir, tmp_path):
    (shard,) = copied_shards(data_dir, tmp_path)
    (other,) = shard.parent.glob("photos-validation*")
    shutil.copy(other, shard)
    with pytest.raises(DataError, match=f"{re.escape(shard.name)} has 7 records; expected 23"):
        open_source("photos", "train", str(tmp_path))


def test_shards_in_a_bucket_are_only_checked_for_existence(monkeypatch):
    shards = [SimpleNamespace(filename=f"gs://bucket/data/part-{n}", examples_in_shard=3) for n in range(2)]
    monkeypatch.setattr(shard_check, "_list_names", lambda folder: ["part-0", "part-1"])
    monkeypatch.setattr(shard_check, "_fault", lambda file, expected: f"{file} was read")
    shard_check.check_shards("split 'train'", epath.Path("gs://bucket/data"), shards, "prepare")
    monkeypatch.setattr(shard_check, "_list_names", lambda folder: ["part-0"])
    with pytest.raises(DataError, match=r"1 of 2 files .*first: part-1 is missing"):
        shard_check.check_shards("split 'train'", epath.Path("gs://bucket/data"), shards, "prepare")


def cut(file, keep):
    """Truncate a file to a number or a fraction of its bytes."""
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content)) if keep < 1 else keep])


def copied_shards(data_dir, root):
    shutil.copytree(Path(data_dir) / "photos", root / "photos")
    return list(root.glob("photos/whole/*/photos-train*"))
