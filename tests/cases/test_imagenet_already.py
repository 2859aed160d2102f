"""`prepare imagenet` says that a dataset is prepared only if it was written from the same images and labels."""

import os
import shutil

import pytest

from mambaout_jax.data import DataError
from mambaout_jax.data.prepare import imagenet, images, prepare_imagenet
from mambaout_jax.tasks.classification.source import open_source
from tests.data import photos
from tests.data.preparation import imagenets

TRAIN = "train/n01440764/n01440764_1.JPEG"
OTHER = "train/n02102040/n02102040_5.JPEG"


def write_folder(folder):
    imagenets.write_folders(folder, flat=True)
    return imagenets.METADATA


def write_tfrecord(folder):
    imagenets.write_tfrecords(folder)
    return imagenets.METADATA


SOURCES = {"tars": imagenets.write_tars, "folder": write_folder, "tfrecord": write_tfrecord}


def prepare(kind, folder, out, metadata, **how):
    return prepare_imagenet(kind, str(folder), str(out), metadata=metadata, **how)


@pytest.mark.parametrize("kind", SOURCES)
def test_the_same_files_are_not_read_again(tmp_path, monkeypatch, kind):
    metadata = SOURCES[kind](tmp_path / "source")
    first = prepare(kind, tmp_path / "source", tmp_path / "out", metadata)
    for module, name in ((images, "content_digest"), (images, "write_dataset"), (imagenet, "_sha256")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("read again"))
    again = prepare(kind, tmp_path / "source", tmp_path / "out", metadata)
    assert again == first._replace(images_per_class=None, num_converted=0)


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("other", SOURCES)
def test_a_copy_in_any_form_is_the_same_dataset(tmp_path, monkeypatch, kind, other):
    prepare(kind, tmp_path / "source", tmp_path / "out", SOURCES[kind](tmp_path / "source"))
    metadata = SOURCES[other](tmp_path / "copy")
    monkeypatch.setattr(images, "write_dataset", lambda *_: pytest.fail("written again"))
    assert prepare(other, tmp_path / "copy", tmp_path / "out", metadata).images_per_class is None


def relabel(folder):
    for path, name in ((TRAIN, "n02102040"), (OTHER, "n01440764")):
        (folder / path).rename(folder / "train" / name / os.path.basename(path))


def swap(folder):
    paths = [folder / path for path in (TRAIN, OTHER)]
    contents, times = [path.read_bytes() for path in paths], [path.stat() for path in paths]
    for path, content, stat in zip(paths, reversed(contents), times, strict=True):
        path.write_bytes(content)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def replace(folder):
    (folder / TRAIN).write_bytes(photos.encode(photos.make_photo(999)))


CHANGES = {
    "relabeled": relabel,
    "swapped": swap,
    "replaced": replace,
    "removed": lambda folder: (folder / TRAIN).unlink(),
    "renamed": lambda folder: (folder / TRAIN).rename(folder / TRAIN.replace("_1.", "_99.")),
    "missing": shutil.rmtree,
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_files_are_refused(tmp_path, change):
    metadata = write_folder(tmp_path / "source")
    prepare("folder", tmp_path / "source", tmp_path / "out", metadata)
    CHANGES[change](tmp_path / "source")
    with pytest.raises(DataError, match=r"was written from other images|expected 15|is not a local directory"):
        prepare("folder", tmp_path / "source", tmp_path / "out", metadata)


def test_overwrite_replaces_the_dataset(tmp_path):
    metadata = write_folder(tmp_path / "source")
    prepare("folder", tmp_path / "source", tmp_path / "out", metadata)
    replace(tmp_path / "source")
    prepare("folder", tmp_path / "source", tmp_path / "out", metadata, overwrite=True)
    stored = {record["image"] for record in open_source("imagenet2012", "train", str(tmp_path / "out"))}
    assert (tmp_path / "source" / TRAIN).read_bytes() in stored
    assert prepare("folder", tmp_path / "source", tmp_path / "out", metadata).images_per_class is None


def test_a_changed_tar_of_the_same_size_is_refused(tmp_path):
    metadata = imagenets.write_tars(tmp_path / "source")
    prepare("tars", tmp_path / "source", tmp_path / "out", metadata)
    tar = tmp_path / "source" / imagenet.VALIDATION_TAR
    content = bytearray(tar.read_bytes())
    content[700] ^= 1  # inside of an image
    tar.write_bytes(content)
    with pytest.raises(DataError, match=r"was written from other images"):
        prepare("tars", tmp_path / "source", tmp_path / "out", metadata)


def test_a_dataset_of_another_program_is_not_called_the_same(tmp_path):
    metadata = write_folder(tmp_path / "source")
    prepared = prepare("folder", tmp_path / "source", tmp_path / "out", metadata)
    os.remove(os.path.join(prepared.folder, "origin.json"))
    with pytest.raises(DataError, match=r"was written by another program, .* --overwrite"):
        prepare("folder", tmp_path / "source", tmp_path / "out", metadata)


def test_imagenet_is_stored_without_the_exif_rule_of_own_photographs(tmp_path):
    prepare("folder", tmp_path / "source", tmp_path / "out", write_folder(tmp_path / "source"))
    source = open_source("imagenet2012", "train", str(tmp_path / "out"))
    assert source.labels["exif_orientation"] is False
