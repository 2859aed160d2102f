import dataclasses
import random

import pytest
import tensorflow_datasets as tfds

from mambaout_jax.data import DataError
from mambaout_jax.data.prepare import dataset_writer
from mambaout_jax.data.prepare.dataset_writer import Dataset, open_workspace, write_dataset
from mambaout_jax.data.prepare.shards import Item
from mambaout_jax.machine import MachineError
from mambaout_jax.tasks.classification.source import open_source
from tests.data import photos

NUM_SHARDS = 4


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    def count(size, images):
        return min(NUM_SHARDS, images)

    monkeypatch.setattr(dataset_writer.shard_utils.ShardConfig, "calculate_number_shards", count)


@pytest.fixture
def insects(tmp_path):
    """Return a dataset of 24 images in one file, and 5 validation images."""
    path, items, content = tmp_path / "images", [], b""
    for number in range(29):
        image = photos.encode(photos.make_photo(100 + number))
        items.append(Item(f"{number % 3}/{number}.jpg", number % 3, str(path), len(content), len(image)))
        content += image
    path.write_bytes(content)
    return Dataset("insects", "1.0.0", ("ant", "bee", "cow"), {"train": items[:24], "validation": items[24:]})


def write(dataset, data_dir, workers=1):
    target = data_dir / dataset.name / dataset.version
    with open_workspace(target) as workspace:
        return write_dataset(dataset, workspace, target, workers)


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stop_after_shard_two(dataset, data_dir, monkeypatch):
    """Interrupt a run in the third shard, like Ctrl-C."""
    left, update = [15], dataset_writer.tqdm.update

    def tick(bar, number=1):
        update(bar, number)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(dataset_writer.tqdm, "update", tick)
        with pytest.raises(KeyboardInterrupt):
            write(dataset, data_dir)


def test_a_written_dataset_is_read_by_tfds_and_open_source(insects, tmp_path):
    written = write(insects, tmp_path)
    assert written == ({"train": 24, "validation": 5}, {"train": [8, 8, 8], "validation": [2, 2, 1]}, 0, 0)
    source = open_source("insects", "train", str(tmp_path))
    assert source.class_names == ("ant", "bee", "cow")
    content = (tmp_path / "images").read_bytes()
    expected = sorted((content[item.offset :][: item.size], item.label) for item in insects.splits["train"])
    assert sorted((record["image"], record["label"]) for record in source) == expected
    record = tfds.data_source("insects", split="validation", data_dir=tmp_path)[0]
    assert record["image"].shape[2] == 3
    assert record["file_name"].startswith(b"%d/" % record["label"])
    info = tfds.builder_from_directory(tmp_path / "insects" / "1.0.0").info
    assert [len(info.splits[split].shard_lengths) for split in ("train", "validation")] == [NUM_SHARDS, NUM_SHARDS]
    assert info.supervised_keys == ("image", "label")


def test_a_dataset_does_not_depend_on_the_order_of_its_images(insects, tmp_path):
    write(insects, tmp_path / "a")
    for items in insects.splits.values():
        random.Random(1).shuffle(items)
    write(insects, tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")


@pytest.mark.run
def test_a_dataset_does_not_depend_on_the_number_of_workers(insects, tmp_path):
    assert write(insects, tmp_path / "a") == write(insects, tmp_path / "b", workers=2)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_a_slice_contains_all_classes(insects, tmp_path):
    write(insects, tmp_path)
    labels = [record["label"] for record in open_source("insects", "train[:50%]", str(tmp_path))]
    assert len(labels) == 12
    assert set(labels) == {0, 1, 2}


def test_a_stopped_and_resumed_run_equals_an_unbroken_one(insects, tmp_path, monkeypatch, capfd):
    write(insects, tmp_path / "unbroken")
    stop_after_shard_two(insects, tmp_path / "stopped", monkeypatch)
    target = tmp_path / "stopped" / "insects" / "1.0.0"
    assert not target.exists()
    with pytest.raises(DataError, match=r"'insects' is not prepared|unknown dataset 'insects'"):
        open_source("insects", "train", str(tmp_path / "stopped"))
    data = target.with_name("1.0.0.incomplete") / "data"
    finished = {path.name: path.stat().st_ino for path in data.iterdir()}
    assert sorted(finished) == [f"insects-train.array_record-0000{index}-of-00004" for index in range(2)]
    write(insects, tmp_path / "stopped")
    assert "2 of 8 shards exist from an earlier run" in capfd.readouterr().err
    assert {name: (target / name).stat().st_ino for name in finished} == finished
    assert files(tmp_path / "stopped") == files(tmp_path / "unbroken")


@pytest.mark.parametrize("change", ["shorter file", "other label", "other size", "no manifest"])
def test_a_changed_shard_is_written_again(insects, tmp_path, monkeypatch, capfd, change):
    stop_after_shard_two(insects, tmp_path / "out", monkeypatch)
    workspace = tmp_path / "out" / "insects" / "1.0.0.incomplete"
    first = min((workspace / "data").iterdir())
    if change == "shorter file":
        first.write_bytes(first.read_bytes()[:-1])
    elif change == "no manifest":
        (workspace / "manifests" / f"{first.name}.json").unlink()
    else:
        items = insects.splits["train"]
        shard = sorted(items, key=lambda item: dataset_writer.hashlib.sha256(item.file_name.encode()).digest())[:6]
        index = items.index(shard[0])
        changed = {
            "other label": {"label": (items[index].label + 1) % 3},
            "other size": {"size": items[index].size + 2},
        }
        items[index] = items[index]._replace(**changed[change])
    write(insects, tmp_path / "out")
    assert "1 of 8 shards exist" in capfd.readouterr().err
    write(insects, tmp_path / "again")
    assert files(tmp_path / "out") == files(tmp_path / "again")


def test_files_of_an_abandoned_run_are_removed(insects, tmp_path, monkeypatch):
    stop_after_shard_two(insects, tmp_path / "out", monkeypatch)
    monkeypatch.setattr(dataset_writer.shard_utils.ShardConfig, "calculate_number_shards", lambda size, images: 3)
    for folder in ("out", "again"):
        write(insects, tmp_path / folder)
    assert files(tmp_path / "out") == files(tmp_path / "again")


def test_undecodable_images_are_counted_and_the_first_is_named(insects, tmp_path):
    content = bytearray((tmp_path / "images").read_bytes())
    for index in (3, 4):
        item = insects.splits["train"][index]
        content[item.offset : item.offset + item.size] = b"x" * item.size
    (tmp_path / "images").write_bytes(content)
    with pytest.raises(DataError, match=r"invalid: 2 of 29 files .first: [01]/[34].jpg: Pillow .*remove them"):
        write(insects, tmp_path)
    assert not (tmp_path / "insects" / "1.0.0").exists()
    for index in (4, 3):
        del insects.splits["train"][index]
    assert write(insects, tmp_path).images_per_class["train"] == [7, 7, 8]


@pytest.mark.parametrize(
    ("cut", "words"),
    [
        (lambda item: item._replace(size=0), "invalid: 1 of 29 files .first: 0/0.jpg: the file is empty"),
        (lambda item: item._replace(size=item.size - 100), "first: 0/0.jpg: .*OSError: .*truncated"),
        (lambda item: item._replace(offset=10**9), "first: 0/0.jpg: the file has 0 of [0-9,]+ bytes"),
    ],
)
def test_a_cut_or_missing_image_is_named(insects, tmp_path, cut, words):
    insects.splits["train"][0] = cut(insects.splits["train"][0])
    with pytest.raises(DataError, match=words):
        write(insects, tmp_path)
    assert not (tmp_path / "insects" / "1.0.0").exists()


def test_an_image_that_cannot_be_read_ends_the_preparation(insects, tmp_path):
    insects.splits["train"][0] = insects.splits["train"][0]._replace(path="/nowhere/x.jpg")
    with pytest.raises(MachineError, match=r"/nowhere/x.jpg: No such file or directory"):
        write(insects, tmp_path)


def test_too_little_disk_space_is_an_error_before_writing(insects, tmp_path, monkeypatch):
    monkeypatch.setattr(
        dataset_writer.shutil, "disk_usage", lambda path: dataset_writer.shutil._ntuple_diskusage(9, 8, 1)
    )
    with pytest.raises(DataError, match=r"insects needs 0.0 GB and its disk has 0.0 GB free; free some space"):
        write(insects, tmp_path)
    assert not (tmp_path / "insects").exists()


def test_a_concurrent_run_is_refused_and_does_not_disturb_the_first(insects, tmp_path):
    target = tmp_path / "insects" / "1.0.0"
    with open_workspace(target) as workspace:
        with pytest.raises(DataError, match=r"another run is preparing .*/insects/1.0.0; wait"):
            write(insects, tmp_path)
        write_dataset(insects, workspace, target, 1)
    assert sorted(path.name for path in target.parent.iterdir()) == ["1.0.0"]


def test_a_run_that_wrote_nothing_leaves_nothing(tmp_path):
    with pytest.raises(DataError), open_workspace(tmp_path / "insects" / "1.0.0"):
        raise DataError("refused")
    assert list(tmp_path.iterdir()) == []


def test_converted_images_are_stored(insects, tmp_path):
    dataset = dataclasses.replace(insects, convert=as_png, encoding="png")
    assert write(dataset, tmp_path).num_converted == 29
    assert open_source("insects", "train", str(tmp_path))[0]["image"].startswith(b"\x89PNG")


def as_png(data, image):
    return photos.encode(image, "PNG")


def test_a_dataset_contains_no_manifests_and_locks(insects, tmp_path):
    write(insects, tmp_path)
    names = sorted(path.name for path in (tmp_path / "insects" / "1.0.0").iterdir())
    assert [name for name in names if "array_record" not in name] == [
        "dataset_info.json",
        "features.json",
        "label.labels.txt",
        "origin.json",
    ]
