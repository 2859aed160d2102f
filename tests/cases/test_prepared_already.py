"""`prepare folder` says that a dataset is prepared only if it was written from the same files."""

import os
import shutil
from collections import Counter

import pytest

from mambaout_jax.__main__ import main
from mambaout_jax.data import DataError
from mambaout_jax.data.prepare import dataset_writer, prepare_folder
from mambaout_jax.tasks.classification.source import open_source
from tests.data import photos

CLASSES = ("crow", "wren")


@pytest.fixture
def birds(tmp_path):
    """Return a folder with two splits, whose images are equally long."""
    for split, count in (("train", 6), ("val", 4), ("test", 2)):
        for number in range(count):
            path = tmp_path / "birds" / split / CLASSES[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bitmap(10 * count + number))
    return tmp_path / "birds"


def bitmap(number):
    return photos.encode(photos.Image.new("RGB", (6, 5), (number, 9, 7)), "BMP")


def labels(data_dir, split="train"):
    source = open_source("birds", split, data_dir)
    return Counter(source.class_names[record["label"]] for record in source)


def relabel(folder):
    (folder / "train/crow/0.png").rename(folder / "train/wren/0.png")
    (folder / "train/wren/1.png").rename(folder / "train/crow/1.png")


def swap(folder):
    first, second = folder / "train/crow/0.png", folder / "train/wren/1.png"
    contents = first.read_bytes(), second.read_bytes()
    times = [os.stat(path) for path in (first, second)]
    for path, content, stat in zip((second, first), contents, reversed(times), strict=True):
        path.write_bytes(content)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def rename_class(folder):
    for split in ("train", "val", "test"):
        (folder / split / "wren").rename(folder / split / "owl")


CHANGES = {
    "relabeled": relabel,
    "replaced by an image of the same size": lambda folder: (folder / "train/crow/0.png").write_bytes(bitmap(250)),
    "swapped": swap,
    "renamed": lambda folder: (folder / "val/crow/0.png").rename(folder / "val/crow/x.png"),
    "moved to another split": lambda folder: (folder / "val/crow/0.png").rename(folder / "train/crow/v.png"),
    "added": lambda folder: (folder / "val/crow/new.png").write_bytes(bitmap(251)),
    "removed": lambda folder: (folder / "val/crow/0.png").unlink(),
    "split removed": lambda folder: shutil.rmtree(folder / "test"),
    "class renamed": rename_class,
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_files_are_refused_and_overwritten_on_request(birds, tmp_path, change):
    out = str(tmp_path / "out")
    prepare_folder(str(birds), data_dir=out)
    before = open_source("birds", "train", out).fingerprint
    assert prepare_folder(str(birds), data_dir=out).images_per_class is None
    CHANGES[change](birds)
    with pytest.raises(DataError, match=r"birds/1.0.0 .*; rerun with --overwrite to replace it"):
        prepare_folder(str(birds), data_dir=out)
    assert open_source("birds", "train", out).fingerprint == before
    prepare_folder(str(birds), data_dir=out, overwrite=True)
    assert open_source("birds", "train", out).fingerprint != before
    assert prepare_folder(str(birds), data_dir=out).images_per_class is None
    expected = {path.name: len(list(path.iterdir())) for path in (birds / "train").iterdir()}
    assert labels(out) == expected
    assert os.listdir(tmp_path / "out" / "birds") == ["1.0.0"]


def test_an_unchanged_copy_of_the_folder_is_the_same(birds, tmp_path):
    prepare_folder(str(birds), data_dir=str(tmp_path / "out"))
    shutil.copytree(birds, tmp_path / "copy" / "birds")
    assert prepare_folder(str(tmp_path / "copy" / "birds"), data_dir=str(tmp_path / "out")).images_per_class is None


@pytest.mark.parametrize("change", ["swapped", "replaced by an image of the same size"])
def test_a_resumed_preparation_writes_changed_files_again(birds, tmp_path, monkeypatch, change):
    with monkeypatch.context() as patch:
        patch.setattr(dataset_writer, "_write_metadata", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare_folder(str(birds), data_dir=str(tmp_path / "out"))
    CHANGES[change](birds)
    prepare_folder(str(birds), data_dir=str(tmp_path / "out"))
    prepare_folder(str(birds), data_dir=str(tmp_path / "fresh"))
    resumed, fresh = (
        sorted((record["label"], record["image"]) for record in open_source("birds", "train", str(tmp_path / place)))
        for place in ("out", "fresh")
    )
    assert resumed == fresh


def test_a_validation_split_has_the_same_share_of_each_class(tmp_path):
    counts = {"crow": 40, "wren": 12, "owl": 2}
    for name, count in counts.items():
        (tmp_path / "birds" / name).mkdir(parents=True)
        for number in range(count):
            (tmp_path / "birds" / name / f"{number}.png").write_bytes(bitmap(number))
    prepared = prepare_folder(str(tmp_path / "birds"), data_dir=str(tmp_path / "out"), validation=0.25)
    assert prepared.num_images == {"train": 40, "validation": 14}
    validation, train = (labels(str(tmp_path / "out"), split) for split in ("validation", "train"))
    assert validation == {"crow": 10, "wren": 3, "owl": 1}
    assert validation + train == counts


def test_a_validation_split_is_not_made_of_a_class_of_one_image_or_next_to_another(birds, tmp_path):
    with pytest.raises(DataError, match=r"has a validation split already, in .*/val; leave out --val"):
        prepare_folder(str(birds), data_dir=str(tmp_path / "out"), validation=0.1)
    for name in ("0.png", "2.png"):
        (birds / "train/crow" / name).unlink()
    shutil.rmtree(birds / "val")
    with pytest.raises(DataError, match=r"the class of crow/4.png has one image; --val requires two or more"):
        prepare_folder(str(birds), data_dir=str(tmp_path / "out"), validation=0.1)


def spoil(birds):
    (birds / "train/crow/text.jpg").write_text("not an image")
    (birds / "train/wren/empty.png").touch()
    (birds / "val/wren/cut.png").write_bytes(bitmap(3)[:40])


def test_all_bad_files_are_reported_at_once(birds, tmp_path, capsys):
    spoil(birds)
    assert main(["prepare", "folder", str(birds), f"--data-dir={tmp_path}/out", "--workers=1"]) == 2
    err = capsys.readouterr().err
    for name in ("crow/text.jpg", "wren/empty.png", "wren/cut.png"):
        assert f"invalid: {name}: " in err
    assert "invalid: 3 of 15 files" in err


def test_bad_files_are_skipped_on_request_and_counted(birds, tmp_path, capsys):
    spoil(birds)
    command = ["prepare", "folder", str(birds), f"--data-dir={tmp_path}/out", "--workers=1", "--skip-bad"]
    assert main(command) == 0
    captured = capsys.readouterr()
    assert "train: 6 images of 2 classes" in captured.out
    assert "skipped 3 invalid images" in captured.out
    assert "skipped: crow/text.jpg: " in captured.err
    assert len([*open_source("birds", "train", str(tmp_path / "out"))]) == 6
    assert main(command) == 0
    assert "already prepared" in capsys.readouterr().out


def test_a_class_without_a_good_file_is_refused(birds, tmp_path):
    for path in (birds / "train" / "crow").iterdir():
        path.write_text("not an image")
    with pytest.raises(DataError, match="class 'crow' has no valid image"):
        prepare_folder(str(birds), data_dir=str(tmp_path / "out"), skip_bad=True)
