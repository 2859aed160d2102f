import json

import pytest
import tensorflow_datasets as tfds

from mambaout_jax.data import DataError
from mambaout_jax.data.prepare import folders, imagenet, images, prepare_dataset
from mambaout_jax.data.prepare.images import prepare_folder, prepare_imagenet
from mambaout_jax.tasks.classification.source import open_source
from tests.data import photos
from tests.data.preparation import imagenets


@pytest.fixture
def insects(tmp_path):
    for number in range(6):
        path = tmp_path / "insects" / ("ant", "bee")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photos.encode(photos.make_photo(20 + number)))
    return tmp_path / "insects"


def test_a_folder_becomes_a_dataset_with_its_name(insects, tmp_path):
    prepared = prepare_folder(str(insects), data_dir=str(tmp_path / "out"))
    assert prepared == (
        "insects",
        *(f"{tmp_path}/out{rest}" for rest in ("/insects/1.0.0", "")),
        {"train": 6},
        2,
        {"train": [3, 3]},
        0,
        0,
    )
    assert len(open_source("insects", "train", str(tmp_path / "out"))) == 6
    assert len(prepare_folder(f"{insects}/", "bugs", str(tmp_path / "out")).images_per_class["train"]) == 2
    assert open_source("bugs", "train", str(tmp_path / "out")).name == "bugs"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("My Insects-2", "'My Insects-2' is not a valid dataset name; .* such as --name my_insects_2"),
        ("2024", "such as --name my_images"),
        ("imagenette", "'imagenette' is the name of another dataset; choose another --name"),
        ("digits", "'digits' is the name of another dataset"),
        ("ade20k", "'ade20k' is the name of another dataset"),
    ],
)
def test_an_invalid_name_gets_a_valid_suggestion(insects, tmp_path, name, words):
    with pytest.raises(DataError, match=words):
        prepare_folder(str(insects), name, str(tmp_path / "out"))
    insects.rename(tmp_path / name)
    with pytest.raises(DataError, match=words):
        prepare_folder(str(tmp_path / name), None, str(tmp_path / "out"))


def test_a_prepared_dataset_is_not_written_again(insects, tmp_path, monkeypatch):
    first = prepare_folder(str(insects), data_dir=str(tmp_path / "out"))
    monkeypatch.setattr(images, "write_dataset", lambda *_: pytest.fail("written again"))
    again = prepare_folder(str(insects), data_dir=str(tmp_path / "out"))
    assert again == first._replace(images_per_class=None)


def test_prepared_imagenet_has_the_expected_classes(tmp_path):
    imagenets.write_folders(tmp_path / "unpacked", flat=True)
    prepare_imagenet("folder", str(tmp_path / "unpacked"), str(tmp_path), metadata=imagenets.METADATA)
    with pytest.raises(
        DataError, match=r"already has imagenet2012, with other classes .first: class 1 is n.* --overwrite to replace"
    ):
        prepare_imagenet("tars", "nowhere", str(tmp_path), metadata=imagenet.official_metadata())


def test_tfrecords_in_the_target_folder_are_refused(tmp_path):
    imagenets.write_tfrecords(tmp_path)
    with pytest.raises(DataError, match="already has imagenet2012, as tfrecord"):
        prepare_imagenet("tfrecord", str(tmp_path), str(tmp_path), metadata=imagenets.METADATA)


def test_imagenet_opens_by_its_name_in_tfds(tmp_path):
    imagenets.write_folders(tmp_path / "unpacked", flat=True)
    prepare_imagenet("folder", str(tmp_path / "unpacked"), str(tmp_path), metadata=imagenets.METADATA)
    source = tfds.data_source("imagenet2012", split="validation", data_dir=tmp_path)
    assert len(source) == 6
    assert source[0]["file_name"].startswith(b"ILSVRC2012_val_0000000")
    features = json.loads((tmp_path / "imagenet2012" / "5.1.0" / "features.json").read_text())
    assert sorted(features["featuresDict"]["features"]) == ["file_name", "image", "label"]


def test_a_target_folder_without_metadata_is_refused(insects, tmp_path):
    (tmp_path / "out" / "insects" / "1.0.0").mkdir(parents=True)
    with pytest.raises(DataError, match=r"insects/1.0.0 exists without the metadata of a dataset; move it away"):
        prepare_folder(str(insects), data_dir=str(tmp_path / "out"))


def test_a_bucket_gets_the_local_files(insects, tmp_path, monkeypatch):
    bucket, local = tmp_path / "bucket", tmp_path / "local"
    monkeypatch.setattr(images.storage, "is_remote", lambda path: str(path) == str(bucket))
    monkeypatch.setattr(images, "LOCAL_DATA_DIR", str(local))
    with monkeypatch.context() as patch:
        patch.setattr(images, "upload", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare_folder(str(insects), data_dir=str(bucket))
    assert not bucket.exists()
    prepared = prepare_folder(str(insects), data_dir=str(bucket))
    assert (prepared.folder, prepared.data_dir) == (f"{bucket}/insects/1.0.0", str(bucket))
    assert len(open_source("insects", "train", str(bucket))) == 6
    assert sorted(path.name for path in (local / "insects").iterdir()) == ["1.0.0"]


def test_an_unreadable_bucket_is_named(insects, monkeypatch):
    class CredentialsError(Exception):
        pass

    def fail(folder):
        raise CredentialsError("no credentials")

    monkeypatch.setattr(images, "is_complete", fail)
    with pytest.raises(DataError, match=r"data_dir gs://bucket cannot be read .no credentials."):
        prepare_folder(str(insects), data_dir="gs://bucket")


def test_an_unwritable_data_dir_is_named(insects, tmp_path, monkeypatch):
    def refuse(target):
        raise PermissionError(13, "Permission denied", str(target))

    monkeypatch.setattr(images, "open_workspace", refuse)
    with pytest.raises(DataError, match=r"cannot write insects to .*; choose another data_dir"):
        prepare_folder(str(insects), data_dir=str(tmp_path / "out"))


def test_versions_are_those_of_the_rooms():
    assert (imagenet.VERSION, folders.VERSION) == ("5.1.0", "1.0.0")


@pytest.mark.parametrize(
    ("folder", "words"),
    [("cow", "class 2 is none there and cow in the source"), ("ape", "class 1 is bee there and ape")],
)
def test_the_first_class_that_differs_is_named(insects, tmp_path, folder, words):
    prepare_folder(str(insects), data_dir=str(tmp_path / "out"))
    if folder == "ape":
        (insects / "bee").rename(insects / "bat")
    (insects / folder).mkdir()
    (insects / folder / "7.jpg").write_bytes(photos.encode(photos.make_photo(7)))
    with pytest.raises(DataError, match=rf"already has insects, with other classes .first: {words}"):
        prepare_folder(str(insects), data_dir=str(tmp_path / "out"))


@pytest.mark.parametrize("data_dir", ["", "insects", "insects/ant", "link"])
def test_a_dataset_is_not_written_into_the_image_folder(insects, tmp_path, monkeypatch, data_dir):
    (tmp_path / "link").symlink_to(tmp_path)
    before = sorted(insects.rglob("*"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"insects/1.0.0 is inside the image folder insects; choose another folder"):
        prepare_folder("insects", data_dir=data_dir or ".")
    assert sorted(insects.rglob("*")) == before
    assert prepare_folder("insects", "bugs", data_dir=".").name == "bugs"


@pytest.mark.parametrize("data_dir", ["file", "file/inside", "nowhere", "loop"])
def test_a_data_dir_that_is_not_a_folder_is_named(insects, tmp_path, data_dir):
    (tmp_path / "file").write_text("")
    (tmp_path / "nowhere").symlink_to("gone")
    (tmp_path / "loop").symlink_to("loop")
    words = f"{tmp_path / data_dir.partition('/')[0]} is not a directory; choose another data_dir"
    with pytest.raises(DataError, match=words):
        prepare_folder(str(insects), data_dir=str(tmp_path / data_dir))
    with pytest.raises(DataError, match=words):
        prepare_dataset("digits", data_dir=str(tmp_path / data_dir))


def test_a_source_that_is_a_loop_of_links_is_named(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(DataError, match="loop cannot be read"):
        prepare_folder(str(tmp_path / "loop"), data_dir=str(tmp_path / "out"))


def test_damaged_metadata_in_the_target_folder_is_refused(insects, tmp_path):
    prepared = prepare_folder(str(insects), data_dir=str(tmp_path / "out"))
    (tmp_path / "out" / "insects" / "1.0.0" / "dataset_info.json").write_text("{")
    with pytest.raises(DataError, match=f"the metadata of the dataset in {prepared.folder} is damaged"):
        prepare_folder(str(insects), data_dir=str(tmp_path / "out"))
