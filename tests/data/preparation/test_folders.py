import os
from pathlib import Path

import pytest

from mambaout_jax.data import DataError
from mambaout_jax.data.prepare import folders
from mambaout_jax.machine import MachineError
from tests.data import photos

TWO = {"ant": 2, "bee": 3}


def write(folder, classes):
    """Write the given number of images into each class folder."""
    for name, count in classes.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            (folder / name / f"{number}.png").write_bytes(photos.encode(photos.make_photo(7 + number), "PNG"))
    return folder


def labels(dataset, split):
    return sorted((item.file_name, item.label) for item in dataset.splits[split])


def test_class_folders_alone_are_one_split_with_sorted_labels(tmp_path):
    dataset = folders.read_folder(write(tmp_path, {"bee": 1, "ant": 2}), "insects")
    assert dataset.class_names == ("ant", "bee")
    assert labels(dataset, "train") == [("ant/0.png", 0), ("ant/1.png", 0), ("bee/0.png", 1)]
    assert list(dataset.splits) == ["train"]
    for item in dataset.splits["train"]:
        assert item.size == Path(item.path).stat().st_size


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_split_folders_have_the_split_names_of_tfds(tmp_path, name):
    for part in ("train", name, "test"):
        write(tmp_path / part, TWO)
    dataset = folders.read_folder(tmp_path, "insects")
    assert sorted(dataset.splits) == ["test", "train", "validation"]
    assert labels(dataset, "validation") == labels(dataset, "train")


def test_classes_without_images_are_allowed_outside_training(tmp_path):
    write(tmp_path / "train", TWO)
    write(tmp_path / "val", {"bee": 1})
    assert labels(folders.read_folder(tmp_path, "insects"), "validation") == [("bee/0.png", 1)]


def test_a_class_may_be_called_train(tmp_path):
    dataset = folders.read_folder(write(tmp_path, {"train": 2, "bus": 1}), "vehicles")
    assert dataset.class_names == ("bus", "train")


def test_hidden_files_and_licenses_are_ignored(tmp_path):
    write(tmp_path, TWO)
    for name in ("ant/.DS_Store", "ant/Thumbs.db", "bee/desktop.ini", "LICENSE.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert len(folders.read_folder(tmp_path, "insects").splits["train"]) == 5


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ({}, "has 0 class folders; expected two or more"),
        ({"ant": 1}, "has 1 class folder; expected two or more"),
        ({"ant": 1, "bee": 0}, "class folder .*/bee has no images; add some or remove it"),
        ({"ant/small": 1, "bee": 1}, "class folder .*/ant has the folder 'small'; expected only images"),
        ({"ant": 1, "bee": 1, ".": 2}, "has 2 images outside of class folders .first: 0.png"),
        ({"val/ant": 1, "test/ant": 1}, "has test and val but no train"),
        ({"train/ant": 1, "train/bee": 1, "val/cow": 1}, "val has the class 'cow', which is missing in .*/train"),
        ({"train/ant": 1, "train/bee": 1, "val": 0}, "val has no images; expected them in"),
        (
            {"train/ant": 1, "train/bee": 1, "val/ant": 1, "validation/ant": 1},
            "has train, val and validation, of which two are the validation split",
        ),
        ({"train/ant": 1, "train/bee": 1, "extra/ant": 1}, "has the folder 'extra' next to train"),
        ({"train": 2}, "has 2 images outside of class folders"),
    ],
)
def test_another_layout_is_refused(tmp_path, classes, words):
    with pytest.raises(DataError, match=words):
        folders.read_folder(write(tmp_path, classes), "insects")


def test_a_missing_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("file", "nowhere"):
        with pytest.raises(DataError, match=f"{name} is not a local directory"):
            folders.read_folder(tmp_path / name, "insects")


@pytest.mark.parametrize("name", [" ant", "ant ", "a\nnt", "a\rnt", " ", "ant\x1c"])
def test_a_class_name_that_tfds_would_change_is_refused(tmp_path, name):
    with pytest.raises(DataError, match=r"class folder .* starts or ends with a space, or has a line break") as told:
        folders.read_folder(write(tmp_path, {name: 1, "bee": 1}), "insects")
    assert repr(str(tmp_path / name)) in str(told.value)
    assert "\n" not in str(told.value)


def test_names_that_are_not_utf8_are_refused(tmp_path):
    write(tmp_path, TWO)
    file = Path(os.fsdecode(bytes(tmp_path / "bee") + b"/caf\xe9.jpg"))
    file.write_bytes(b"x")
    with pytest.raises(DataError, match=r"the name of the file .*/bee/caf.udce9.jpg' is not UTF-8; rename it"):
        folders.read_folder(tmp_path, "insects")
    file.unlink()
    Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9")).mkdir()
    with pytest.raises(DataError, match=r"the name of the class folder .*/caf.udce9' is not UTF-8; rename it"):
        folders.read_folder(tmp_path, "insects")


@pytest.mark.parametrize("leads_to", ["nowhere", "link.png"])
def test_a_dangling_link_is_named(tmp_path, leads_to):
    write(tmp_path, TWO)
    (tmp_path / "ant" / "link.png").symlink_to(leads_to)
    with pytest.raises(DataError, match=r"ant/link.png is a dangling link; fix or remove it"):
        folders.read_folder(tmp_path, "insects")


def test_links_to_images_and_folders_are_followed(tmp_path):
    write(tmp_path / "there", TWO)
    (tmp_path / "here" / "ant").mkdir(parents=True)
    (tmp_path / "here" / "bee").symlink_to(tmp_path / "there" / "bee")
    (tmp_path / "here" / "ant" / "1.png").symlink_to(tmp_path / "there" / "ant" / "0.png")
    assert len(folders.read_folder(tmp_path / "here", "insects").splits["train"]) == 4


def test_an_unreadable_folder_is_named(tmp_path, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(folders.os, "scandir", refuse)
    with pytest.raises(MachineError, match=f"{tmp_path}: Permission denied; check the disk and its permissions"):
        folders.read_folder(tmp_path, "insects")
