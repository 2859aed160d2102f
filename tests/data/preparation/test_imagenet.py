import dataclasses
import io
import os

import numpy as np
import pytest
from PIL import Image

from mambaout_jax.data import DataError
from mambaout_jax.data.prepare import imagenet
from mambaout_jax.data.prepare.images import prepare_imagenet
from mambaout_jax.machine import MachineError
from mambaout_jax.tasks.classification.source import open_source
from tests.data import photos
from tests.data.preparation import imagenets
from tests.data.preparation.imagenets import METADATA


@pytest.fixture
def tars(tmp_path):
    return tmp_path / "tars", imagenets.write_tars(tmp_path / "tars")


@pytest.fixture
def unpacked(tmp_path):
    imagenets.write_folders(tmp_path / "unpacked", flat=True)
    return tmp_path / "unpacked"


@pytest.fixture
def tfrecords(tmp_path):
    return imagenets.write_tfrecords(tmp_path / "tfrecords")


def prepare(kind, source, data_dir, metadata=METADATA):
    prepared = prepare_imagenet(kind, str(source), str(data_dir), metadata=metadata)
    return prepared, [open_source("imagenet2012", split, str(data_dir)) for split in ("train", "validation")]


def contents(source):
    return [tuple(source[index].values()) for index in range(len(source))]


def test_tars_folders_and_tfrecords_give_the_same_dataset(tmp_path, tars, unpacked, tfrecords):
    imagenets.write_folders(tmp_path / "nested", flat=False)
    sources = [
        ("tars", *tars),
        ("folder", unpacked, METADATA),
        ("folder", tmp_path / "nested", METADATA),
        ("tfrecord", tfrecords, METADATA),
        ("tfrecord", tmp_path / "tfrecords", METADATA),
    ]
    datasets = []
    for number, (kind, source, metadata) in enumerate(sources):
        prepared, splits = prepare(kind, source, tmp_path / f"out{number}", metadata)
        assert prepared.num_converted == 2
        assert prepared.images_per_class == {"train": [5, 5, 5], "validation": [2, 2, 2]}
        datasets.append([(split.fingerprint, contents(split)) for split in splits])
    assert datasets[0][0][0].startswith("imagenet2012/5.1.0:train:15:")
    for other in datasets[1:]:
        assert other == datasets[0]


def test_labels_are_the_ranks_of_wordnet_ids_and_validation_has_those_of_the_table(tmp_path, unpacked):
    _, (train, validation) = prepare("folder", unpacked, tmp_path)
    assert train.class_names == tuple(sorted(imagenets.CLASS_NAMES))
    labels = dict(contents(train))
    for name, data in imagenets.train_images().items():
        if name not in (imagenets.PNG, imagenets.CMYK):
            assert labels[data] == imagenets.CLASS_NAMES.index(name[:9])
    labels = {image: train.class_names[label] for image, label in contents(validation)}
    assert [labels[data] for data in imagenets.validation_images().values()] == list(imagenets.VALIDATION_LABELS)


@pytest.mark.parametrize("name", [imagenets.PNG, imagenets.CMYK])
def test_other_images_become_rgb_jpegs_with_the_same_pixels(name):
    data = imagenets.train_images()[name]
    image = Image.open(io.BytesIO(data))
    repaired = Image.open(io.BytesIO(imagenet.as_rgb_jpeg(data, image)))
    assert (repaired.format, repaired.mode) == ("JPEG", "RGB")
    difference = np.asarray(repaired).astype(int) - np.asarray(image.convert("RGB"))
    assert np.abs(difference).max() <= 4
    assert np.abs(difference).mean() < 0.5


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_gray_and_rgb_jpegs_keep_their_bytes(mode):
    data = photos.encode(photos.make_photo(3).convert(mode))
    assert imagenet.as_rgb_jpeg(data, Image.open(io.BytesIO(data))) is data


@pytest.mark.slow
def test_the_official_metadata_is_that_of_ilsvrc_2012():
    metadata = imagenet.official_metadata()
    assert metadata.num_images == {"train": 1281167, "validation": 50000}
    assert len(metadata.class_names) == 1000
    assert metadata.class_names == tuple(sorted(metadata.class_names))
    assert metadata.class_names[:2] == ("n01440764", "n01443537")
    assert all(metadata.validation_labels.count(name) == 50 for name in metadata.class_names)
    assert metadata.tars["ILSVRC2012_img_train.tar"][0] == 147897477120
    assert metadata.tars["ILSVRC2012_img_val.tar"][0] == 6744924160


def assert_refused(tmp_path, kind, source, words, metadata=METADATA):
    with pytest.raises((DataError, MachineError), match=words):
        prepare_imagenet(kind, str(source), str(tmp_path / "out"), metadata=metadata)
    assert not (tmp_path / "out" / "imagenet2012" / "5.1.0").exists()


@pytest.mark.parametrize("kind", ["tars", "folder", "tfrecord"])
def test_a_missing_source_is_named(tmp_path, kind):
    assert_refused(tmp_path, kind, tmp_path / "nowhere", "nowhere (is not a local directory|has no imagenet2012)")
    assert not (tmp_path / "out" / "imagenet2012").exists()


def test_wrong_tars_are_refused_before_they_are_read(tmp_path, tars, monkeypatch):
    folder, metadata = tars
    name = "ILSVRC2012_img_train.tar"
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-512])
    with monkeypatch.context() as patch:
        patch.setattr(imagenet, "_sha256", lambda path: pytest.fail("read before the sizes were checked"))
        sizes = f"has {len(content) - 512:,} bytes; expected {len(content):,}: it is truncated"
        assert_refused(tmp_path, "tars", folder, sizes, metadata)
        (folder / name).rename(folder / "train.tar")
        assert_refused(tmp_path, "tars", folder, f"has no {name} .it has ILSVRC2012_img_val.tar, train.tar", metadata)
    (folder / name).write_bytes(content[:2000] + b"\0" + content[2001:])
    assert_refused(tmp_path, "tars", folder, "does not have the official SHA-256: .* repacked.* use --folder", metadata)


def stop_after_the_check(tmp_path, tars, monkeypatch):
    folder, metadata = tars
    with monkeypatch.context() as patch:
        patch.setattr(imagenet, "_list_train_tar", lambda path: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare("tars", folder, tmp_path, metadata)


def test_tars_are_checked_once(tmp_path, tars, monkeypatch):
    folder, metadata = tars
    stop_after_the_check(tmp_path, tars, monkeypatch)
    monkeypatch.setattr(imagenet, "_sha256", lambda path: pytest.fail("read again"))
    assert prepare("tars", folder, tmp_path, metadata)[0].num_images == imagenets.NUM_IMAGES


def test_a_list_of_checked_tars_that_was_cut_short_is_ignored(tmp_path, tars, monkeypatch):
    folder, metadata = tars
    stop_after_the_check(tmp_path, tars, monkeypatch)
    [checked] = tmp_path.rglob("checked.json")
    checked.write_text(checked.read_text()[:9])
    assert prepare("tars", folder, tmp_path, metadata)[0].num_images == imagenets.NUM_IMAGES


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no tar at all" * 100, "is not a tar, or is damaged near byte 0"),
        (imagenets.pack({"n00000001.tar": imagenets.pack({"n00000001_1.JPEG": b"1"})}), "has the class 'n00000001'"),
        (imagenets.pack({"n01440764.tar": imagenets.pack({"x.JPEG": b"1"})}), "has 'x.JPEG'; expected n01440764_"),
        (imagenets.pack({"n01440764.tar": b"x" * 1000}), "is not a tar, or is damaged near byte 512"),
        (
            imagenets.pack({"n01440764.tar": imagenets.pack({"n01440764_1.JPEG": b"1" * 9000})[:2048]}),
            "has 'n01440764_1.JPEG', which is not a complete file",
        ),
        (
            imagenets.pack({"n01440764.tar": imagenets.pack({"n01440764_1.JPEG": b"1"})}),
            "has 1 image for train; expected 15",
        ),
    ],
)
def test_tars_with_other_contents_are_refused(tmp_path, content, words):
    metadata = imagenets.write_tars(tmp_path / "tars", train=content)
    assert_refused(tmp_path, "tars", tmp_path / "tars", words, metadata)


def test_folders_that_are_not_imagenet_are_refused(tmp_path, unpacked):
    image = unpacked / "val" / "ILSVRC2012_val_00000004.JPEG"
    data = image.read_bytes()
    image.unlink()
    assert_refused(tmp_path, "folder", unpacked, "has 5 images for validation; expected 6")
    (unpacked / "val" / "4.JPEG").write_bytes(data)
    assert_refused(tmp_path, "folder", unpacked, "val has '4.JPEG'; expected ILSVRC2012_val_00000001.JPEG")
    (unpacked / "val" / "4.JPEG").rename(unpacked / "val" / "ILSVRC2012_val_00000007.JPEG")
    assert_refused(
        tmp_path, "folder", unpacked, "expected ILSVRC2012_val_00000001.JPEG to ILSVRC2012_val_00000006.JPEG"
    )
    (unpacked / "train" / "n00000001").mkdir()
    assert_refused(tmp_path, "folder", unpacked, "train has the class 'n00000001', which is not one of the")
    (unpacked / "val").rename(unpacked / "rest")
    assert_refused(tmp_path, "folder", unpacked, "has no folder 'val'")


def test_validation_images_in_a_wrong_class_folder_are_refused(tmp_path):
    imagenets.write_folders(tmp_path / "nested", flat=False)
    image = next((tmp_path / "nested" / "val" / "n01440764").iterdir())
    image.rename(tmp_path / "nested" / "val" / "n02102040" / image.name)
    assert_refused(tmp_path, "folder", tmp_path / "nested", "1 validation image of the class n01440764; expected 2")


def test_incomplete_tfrecords_are_refused(tmp_path, tfrecords):
    first, second = sorted(tfrecords.glob("imagenet2012-train*"))
    content = first.read_bytes()
    first.write_bytes(content[:-100])
    assert_refused(tmp_path, "tfrecord", tfrecords, "train.tfrecord-00000-of-00002 is truncated in the record")
    first.write_bytes(content)
    images = list(imagenets.train_images().items())
    imagenets.write_tfrecord(second, [imagenets.serialise(*images[0], label=0)])
    assert_refused(tmp_path, "tfrecord", tfrecords, "has 1 record; expected 7")
    imagenets.write_tfrecord(second, [imagenets.serialise(*image, label=3) for image in images[:7]])
    assert_refused(tmp_path, "tfrecord", tfrecords, "n01440764_0.JPEG in .* has the label 3; expected 0 to 2")
    second.unlink()
    assert_refused(tmp_path, "tfrecord", tfrecords, "train.tfrecord-00001-of-00002 is missing")


def test_tfrecords_of_another_dataset_are_refused(tmp_path, tfrecords):
    other = imagenets.write_tfrecords(tmp_path / "other", name="imagenet_v2")
    assert_refused(tmp_path, "tfrecord", other, "has imagenet_v2 as tfrecord; expected imagenet2012 as tfrecord")
    assert_refused(
        tmp_path,
        "tfrecord",
        tfrecords,
        "expected imagenet2012 as tfrecord, with its classes",
        imagenet.official_metadata(),
    )
    metadata = dataclasses.replace(METADATA, num_images={"train": 15, "validation": 6, "test": 1})
    assert_refused(tmp_path, "tfrecord", tfrecords, "has no split 'test'", metadata)


def test_a_truncated_image_is_named(tmp_path, unpacked):
    image = unpacked / "train" / "n03888257" / "n03888257_12.JPEG"
    image.write_bytes(image.read_bytes()[:-200])
    assert_refused(tmp_path, "folder", unpacked, "invalid: 1 of 21 files .first: n03888257_12.JPEG")


@pytest.mark.parametrize("content", ['{"name": "imagenet', '{"name": "imagenet2012", "splits": 3}', "[]", "{}"])
def test_tfrecords_with_damaged_metadata_are_refused(tmp_path, tfrecords, content):
    (tfrecords / "dataset_info.json").write_text(content)
    assert_refused(
        tmp_path, "tfrecord", tfrecords, "5.1.0 is damaged or from another version of TFDS .*; copy or prepare it"
    )


def test_metadata_of_an_old_tfds_is_refused(tmp_path, tfrecords):
    (tfrecords / "features.json").unlink()
    assert_refused(
        tmp_path, "tfrecord", tfrecords, "5.1.0 is damaged or from another version of TFDS .*; copy or prepare it"
    )


def test_an_unreadable_source_is_named_instead_of_the_target(tmp_path, tars, unpacked, monkeypatch):
    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    folder, metadata = tars
    with monkeypatch.context() as patch:
        patch.setattr(imagenet, "_sha256", refuse)
        assert_refused(
            tmp_path, "tars", folder, "train.tar: Permission denied; check the disk and its permissions", metadata
        )
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path=".": refuse(path) if path == unpacked else real(path))
    assert_refused(tmp_path, "folder", unpacked, "unpacked: Permission denied; check the disk and its permissions")
