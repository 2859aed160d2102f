import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import time

import pytest
from tensorflow_datasets.proto import tf_example_pb2

from mambaout_jax.data import DataError, open_records, shard_check
from mambaout_jax.data.decode import decode_image
from mambaout_jax.machine import MachineError
from mambaout_jax.tasks.classification.source import ImageSource, open_source
from tests.data import photos


@pytest.fixture(scope="module")
def odd_dir(tmp_path_factory):
    """Return a folder with a dataset without images and one in another format."""
    folder = tmp_path_factory.mktemp("odd")
    photos.write(photos.Texts, folder)
    return str(folder)


def test_records_equal_the_written_files(data_dir):
    source = open_source("photos/whole", "train", data_dir)
    images = {source[index]["image"] for index in range(len(source))}
    assert images == {photos.encode(photos.make_photo(number)) for number in range(photos.NUM_TRAIN)}
    assert {decode_image(image).mode for image in images} == {"RGB"}
    by_image = {photos.encode(photos.make_photo(n)): n % len(photos.CLASS_NAMES) for n in range(photos.NUM_TRAIN)}
    assert all(record["label"] == by_image[record["image"]] for record in source)


@pytest.mark.parametrize("name", ["photos", "photos/whole", "photos:1.2.0", "photos/whole:1.2.0", "photos/whole:1.*.*"])
def test_names_may_contain_config_and_version(data_dir, name):
    source = open_source(name, "train", data_dir)
    assert (source.name, source.split, source.class_names) == ("photos/whole", "train", photos.CLASS_NAMES)
    assert source.fingerprint.startswith("photos/whole/1.2.0:train:23:")


def test_slices_of_a_split_have_their_own_records_and_fingerprint(data_dir):
    whole = open_source("photos", "train", data_dir)
    head, tail = (open_source("photos", split, data_dir) for split in ("train[:70%]", "train[70%:]"))
    assert [*head, *tail] == [*whole]
    assert len({source.fingerprint for source in (whole, head, tail)}) == 3


def test_configs_have_different_fingerprints(data_dir):
    one, other = (open_source(f"photos/{config}", "train", data_dir) for config in ("whole", "broken"))
    assert one.fingerprint != other.fingerprint


def test_other_data_under_the_same_name_has_another_fingerprint(data_dir, tmp_path):
    copy_photos(data_dir, tmp_path / "photos")
    one = open_source("photos", "train", str(tmp_path))
    (info,) = tmp_path.glob("photos/whole/*/dataset_info.json")
    info.write_text(re.sub(r'"numBytes": "(\d+)"', r'"numBytes": "1\1"', info.read_text()))
    other = open_source("photos", "train", str(tmp_path))
    assert one.fingerprint == open_source("photos", "train", data_dir).fingerprint
    assert one.fingerprint != other.fingerprint


def test_a_pickled_source_has_the_same_records(data_dir):
    source = open_source("photos", "train", data_dir)
    assert [*pickle.loads(pickle.dumps(source))] == [*source]


@pytest.mark.run
def test_the_code_that_generated_a_dataset_is_not_needed_to_read_it(data_dir):
    program = (
        "import sys; from mambaout_jax.tasks.classification.source import open_source;"
        "print(len(open_source('photos', 'train', sys.argv[1])), 'tests' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    result = subprocess.run(
        [sys.executable, "-c", program, data_dir], check=True, capture_output=True, text=True, env=environment
    )
    assert result.stdout.split() == ["23", "False"]


@pytest.mark.parametrize("index", [-1, 23])
def test_an_index_outside_the_split_is_an_error(data_dir, index):
    with pytest.raises(IndexError):
        open_source("photos", "train", data_dir)[index]


@pytest.mark.parametrize(
    ("name", "split", "words"),
    [
        (
            "imagenette",
            "train",
            "'imagenette' is not prepared in .*; run: python -m mambaout_jax prepare imagenette --data",
        ),
        (
            "photos/large",
            "train",
            r"not prepared .* \(prepared there: photos/broken/1.2.0, photos/whole/1.2.0\); run: .* photos/large",
        ),
        ("photos:2.0.0", "train", r"'photos:2.0.0' is not prepared"),
        ("imagenet2012", "train", "'imagenet2012' is not prepared .* run: .* prepare imagenet --tars=DIR --data-dir="),
        ("photo", "train", "unknown dataset 'photo'; did you mean 'photos'"),
        ("imagenete", "train", "unknown dataset 'imagenete'; did you mean 'imagenette'"),
        ("digit", "train", "unknown dataset 'digit'; did you mean 'digits'"),
        ("zzzzzz", "train", "unknown dataset 'zzzzzz'; tensorflow.org"),
        ("my photos", "train", "'my photos' is not a dataset name"),
        ("", "train", "'' is not a dataset name"),
        ("photos", "test", r"no split 'test'; it has train \(23 records\), validation \(7 records\)"),
        ("photos", "train[", r"no split 'train\['"),
        ("photos", "train[:0]", r"split 'train\[:0\]' of dataset 'photos' has no records"),
        ("photos", "train[5:3]", r"split 'train\[5:3\]' of dataset 'photos' has no records"),
    ],
)
def test_missing_datasets_and_splits_are_named_with_a_remedy(data_dir, name, split, words):
    with pytest.raises(DataError, match=words):
        open_source(name, split, data_dir)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(
        DataError, match=f"data_dir {tmp_path}/none does not exist; .* prepare photos --data-dir={tmp_path}"
    ):
        open_source("photos", "train", str(tmp_path / "none"))


def test_an_unlistable_folder_is_named(tmp_path, monkeypatch):
    def refuse(root):
        raise PermissionError(13, "Permission denied", str(root))

    monkeypatch.setattr(shard_check, "_list_names", refuse)
    with pytest.raises(MachineError, match=f"{tmp_path} cannot be read: {tmp_path}: Permission denied"):
        open_source("photos", "train", str(tmp_path))


def test_an_unresponsive_bucket_is_an_error(monkeypatch):
    monkeypatch.setattr(shard_check, "_list_names", lambda root: time.sleep(5))
    monkeypatch.setattr(shard_check, "REMOTE_SECONDS", 0.05)
    with pytest.raises(MachineError, match=r"gs://bucket cannot be read: no answer within"):
        open_source("photos", "train", "gs://bucket")


def test_a_dataset_without_labeled_images_is_refused(odd_dir):
    with pytest.raises(DataError, match="'texts' has the features text; expected one image feature"):
        open_source("texts", "train", odd_dir)


def test_another_file_format_is_refused(data_dir, tmp_path):
    folder = tmp_path / "photos"
    copy_photos(data_dir, folder)
    for file in folder.rglob("dataset_info.json"):
        file.write_text(file.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(DataError, match=r"prepared as tfrecord in .*; move the folder away and run: "):
        open_source("photos", "train", str(tmp_path))


@pytest.mark.parametrize(("label", "accepted"), [(-1, False), (0, True), (2, True), (3, False)])
def test_a_label_out_of_range_is_named(label, accepted):
    source = source_of({"label": [label]})
    if accepted:
        assert source[0]["label"] == label
    else:
        with pytest.raises(DataError, match=f"its label is {label}; expected 0 to 2"):
            source[0]


def test_a_split_without_labels_is_refused(tmp_path, monkeypatch):
    photos.write(photos.Photos, tmp_path, config="whole")
    monkeypatch.setattr(ImageSource, "_read", lambda source, index: (b"", (-1,)))
    with pytest.raises(DataError, match="split 'train' of dataset 'photos' has no labels; choose another"):
        open_source("photos", "train", str(tmp_path))


def test_images_of_several_labels_are_not_for_training():
    source_of({"label": [1]}).check_trainable()
    with pytest.raises(DataError, match="images of 'one' have several labels each; use this dataset for evaluation"):
        source_of({"real_label": [1]}, feature="real_label").check_trainable()


def test_images_of_several_labels_have_them_in_a_tuple():
    for labels in ([], [2], [2, 0]):
        source = source_of({"real_label": labels, "original_label": [1]}, feature="real_label")
        assert source[0]["label"] == tuple(labels)
        assert source.max_labels == 9
    with pytest.raises(DataError, match="its label is 3; expected 0 to 2"):
        source_of({"real_label": [1, 3]}, feature="real_label")[0]
    with pytest.raises(DataError, match="the record has 10 labels; expected 0 to 9"):
        source_of({"real_label": [1] * 10}, feature="real_label")[0]


@pytest.mark.parametrize("labels", [[], [1, 2]])
def test_images_of_one_label_have_only_that_label(labels):
    assert source_of({"label": [1]}).max_labels == 1
    with pytest.raises(DataError, match=f"the record has {len(labels)} labels; expected 1"):
        source_of({"label": labels})[0]


def source_of(labels, feature="label"):
    """Build a source of one record in memory."""
    record = tf_example_pb2.Example()
    record.features.feature["image"].bytes_list.value.append(b"image")
    for name, values in labels.items():
        record.features.feature[name].int64_list.value.extend(values)
    return ImageSource(
        [record.features.feature],
        name="one",
        split="test",
        class_names=photos.CLASS_NAMES,
        fingerprint="",
        feature=feature,
    )


def test_records_are_read_without_labels(odd_dir):
    records = open_records("texts", "train", odd_dir)
    assert [record["text"].bytes_list.value[0] for record in pickle.loads(pickle.dumps(records))] == [b"a"]
    assert (records.name, records.split, list(records.features)) == ("texts", "train", ["text"])
    assert records.fingerprint(["a"]) != records.fingerprint(["b"])


def test_labels_of_a_source_are_json_serializable(data_dir):
    labels = open_source("photos", "train", data_dir).labels
    assert (
        json.loads(json.dumps(labels)) == labels == {"class_names": list(photos.CLASS_NAMES), "exif_orientation": False}
    )


def copy_photos(data_dir, folder):
    shutil.copytree(os.path.join(data_dir, "photos"), folder)


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_damaged_metadata_is_one_sentence(data_dir, tmp_path, name, content):
    copy_photos(data_dir, tmp_path / "photos")
    for file in (tmp_path / "photos").rglob(name):
        file.write_text(content)
    with pytest.raises(DataError, match=r"the metadata of the dataset in .*photos.* is damaged .*; copy or prepare it"):
        open_source("photos", "train", str(tmp_path))


@pytest.mark.parametrize("content", ["", "[]", "null"])
def test_a_damaged_record_of_the_origin_is_one_sentence(data_dir, tmp_path, content):
    copy_photos(data_dir, tmp_path / "photos")
    for file in (tmp_path / "photos").rglob("features.json"):
        file.with_name("origin.json").write_text(content)
    with pytest.raises(DataError, match=r"origin\.json is damaged \(.*\); prepare the dataset again"):
        open_source("photos", "train", str(tmp_path))


def test_class_names_that_no_export_accepts_are_refused(data_dir, tmp_path):
    copy_photos(data_dir, tmp_path / "photos")
    for file in (tmp_path / "photos").rglob("label.labels.txt"):
        first, *others = file.read_text().splitlines()
        file.write_text("\n".join([f"{first}\x1b[2J", *others]) + "\n")
    with pytest.raises(DataError, match=r"has the class .* whose name has control characters"):
        open_source("photos", "train", str(tmp_path))
