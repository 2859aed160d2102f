import dataclasses
import functools

import pytest
from array_record.python import array_record_module

from mambaout_jax.data.prepare.shards import Item, ShardJob, read_manifest, write_shard
from tests.data import photos


@pytest.fixture
def job(tmp_path):
    items = []
    for number in range(3):
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(photos.encode(photos.make_photo(10 + number)))
        items.append(Item(path.name, number, str(path), 0, path.stat().st_size))
    return ShardJob("train", tmp_path / "shard", tmp_path / "manifest", tuple(items), None)


def test_a_shard_has_a_manifest_of_its_content(job):
    assert read_manifest(job) is None
    calls = []
    manifest = write_shard(job, lambda: calls.append(1))
    assert len(calls) == 3
    assert manifest["labels"] == {0: 1, 1: 1, 2: 1}
    assert manifest["records"] == 3
    assert manifest["bytes"] > sum(item.size for item in job.items)
    assert read_manifest(job)["bytes"] == manifest["bytes"]


def read_nothing(label_map, image, size, num_classes):
    return label_map, set()


@pytest.mark.parametrize(
    "change",
    [
        {"convert": read_nothing},
        {"read_labels": functools.partial(read_nothing, num_classes=3)},
        {"exif_orientation": True},
    ],
)
def test_a_shard_that_is_converted_in_another_way_is_written_again(job, change):
    job = dataclasses.replace(job, read_labels=functools.partial(read_nothing, num_classes=2))
    write_shard(job, lambda: None)
    assert read_manifest(job)
    assert not read_manifest(dataclasses.replace(job, **change))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda records: [records[0], records[1], records[2][:-1] + b"x"],
            "record 2 of .* differs from what was",
        ),
        (lambda records: records[:2], "has 2 of 3 records; check the disk"),
    ],
)
def test_a_shard_that_differs_when_read_back_is_an_error(job, monkeypatch, change, words):
    class Forgetful:
        def __init__(self, path, options):
            self.path, self.options, self.records = path, options, []

        def write(self, record):
            self.records.append(record)

        def close(self):
            writer = real(self.path, self.options)
            for record in change(self.records):
                writer.write(record)
            writer.close()

    real = array_record_module.ArrayRecordWriter
    monkeypatch.setattr(array_record_module, "ArrayRecordWriter", Forgetful)
    with pytest.raises(OSError, match=words):
        write_shard(job, lambda: None)
    assert not job.file.exists()
    assert read_manifest(job) is None


def test_a_failed_write_names_the_file_and_leaves_nothing(job, tmp_path, monkeypatch):
    real = array_record_module.ArrayRecordWriter
    monkeypatch.setattr(array_record_module, "ArrayRecordWriter", lambda path, options: real("/dev/full", options))
    with pytest.raises(OSError, match=r"cannot write .*/shard: no space left for /dev/full"):
        write_shard(job, lambda: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.jpg", "1.jpg", "2.jpg"]
