import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from mambaout_jax.data import DataError
from mambaout_jax.data.decode import decode_image
from mambaout_jax.data.prepare import builders, digits, ensure_prepared
from mambaout_jax.data.prepare.builders import prepare_digits
from mambaout_jax.tasks.classification.source import open_source

# Fingerprints of earlier versions: runs are resumed on the data on which they were started.
FINGERPRINTS = {
    "train": "digits/1.0.0:train:1437:b45273d94b604e2b",
    "validation": "digits/1.0.0:validation:360:52fd7064b93419de",
    "train[:50%]": "digits/1.0.0:train[:50%]:718:b5bbf94804d9d526",
}


@pytest.fixture(scope="module")
def digits_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    ensure_prepared("digits", str(folder))
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("split", "size"), [("train", 1437), ("validation", 360)])
def test_splits_are_those_of_train_test_split(digits_dir, split, size):
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=360, stratify=labels, random_state=0)
    images, labels = (parts[0], parts[2]) if split == "train" else (parts[1], parts[3])
    expected = [(np.round(x * 255 / 16).astype(np.uint8).tobytes(), y) for x, y in zip(images, labels, strict=True)]
    source = open_source("digits", split, digits_dir)
    found = [(np.asarray(decode_image(record["image"], 1)).tobytes(), record["label"]) for record in source]
    assert len(source) == size
    assert sorted(found) == sorted(expected)
    assert source.class_names == tuple("0123456789")


@pytest.mark.slow
def test_first_use_prepares_offline_and_prints_nothing(tmp_path, monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    folder = tmp_path / "not" / "there" / "yet"
    ensure_prepared("digits", str(folder))
    assert len(open_source("digits", "train", str(folder))) == 1437
    assert [path.name for path in folder.iterdir()] == ["digits"]
    assert capsys.readouterr() == ("", "")


def test_second_use_writes_nothing(digits_dir, monkeypatch):
    monkeypatch.setattr(builders, "_generate", None)
    before = {file: file.stat().st_mtime_ns for file in Path(digits_dir).rglob("*")}
    ensure_prepared("digits", digits_dir)
    assert {file: file.stat().st_mtime_ns for file in Path(digits_dir).rglob("*")} == before


@pytest.mark.slow
def test_equal_data_prepared_elsewhere_has_the_same_fingerprint(digits_dir, tmp_path):
    ensure_prepared("digits", str(tmp_path))
    one, other = (open_source("digits", "train", folder) for folder in (digits_dir, str(tmp_path)))
    assert one.fingerprint == other.fingerprint
    assert one.fingerprint != open_source("digits", "validation", digits_dir).fingerprint
    assert one.fingerprint != open_source("digits", "train[:50%]", digits_dir).fingerprint


def test_digits_prepared_by_earlier_versions_are_read_and_have_the_same_fingerprint(digits_dir, tmp_path):
    shutil.copytree(Path(digits_dir) / "digits", tmp_path / "digits")
    (info,) = tmp_path.glob("digits/*/dataset_info.json")
    written = json.loads(info.read_text())
    assert written["moduleName"] == "mambaout_jax.data.prepare.digits"
    info.write_text(json.dumps(written | {"moduleName": "mambaout_jax.data.digits"}))  # where the builder used to be
    splits = {split: open_source("digits", split, str(tmp_path)) for split in FINGERPRINTS}
    assert {split: source.fingerprint for split, source in splits.items()} == FINGERPRINTS
    assert sorted({record["label"] for record in splits["validation"]}) == list(range(10))


@pytest.mark.slow
def test_of_two_concurrent_processes_the_second_uses_the_files_of_the_first(tmp_path, monkeypatch):
    generate, written = builders._generate, []

    def be_overtaken(builder):
        monkeypatch.setattr(builders, "_generate", generate)
        written.append(prepare_digits(str(tmp_path)))
        generate(builder)

    monkeypatch.setattr(builders, "_generate", be_overtaken)
    assert prepare_digits(str(tmp_path)) == written[0]
    assert len(open_source("digits", "train", str(tmp_path))) == 1437
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]


KILLED = """
import os, signal, sys
from mambaout_jax.data.prepare import digits, ensure_prepared
def encode(pixels, count=[0]):
    count[0] += 1
    if count[0] == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(pixels)
whole, digits.encode_digit = digits.encode_digit, encode
ensure_prepared("digits", sys.argv[1])
"""


@pytest.mark.run
@pytest.mark.parametrize("record", [1, 1790])
def test_a_killed_preparation_is_repeated(tmp_path, record):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(record)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "digits" / "1.0.0").exists()
    ensure_prepared("digits", str(tmp_path))
    assert len(open_source("digits", "train", str(tmp_path))) == 1437


def test_an_unwritable_folder_is_named(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(DataError, match=f"{file}/x .*choose another data_dir"):
        ensure_prepared("digits", str(file / "x"))


def test_opening_unprepared_digits_names_the_command_and_writes_nothing(tmp_path):
    with pytest.raises(DataError, match=f"'digits' is not prepared .*; run: .* prepare digits --data-dir={tmp_path}"):
        open_source("digits", "train", str(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "folder"), [("pathfinder", None), ("imagenet2012", None), ("digits", "gs://bucket")])
def test_other_datasets_and_buckets_are_left_to_the_command(name, folder, tmp_path):
    ensure_prepared(name, folder or str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_digits_are_not_written_to_a_bucket(monkeypatch):
    monkeypatch.setattr(builders, "is_complete", lambda folder: False)
    with pytest.raises(DataError, match="prepare digits in a local folder and upload it"):
        prepare_digits("gs://bucket/datasets")


def test_encoded_digits_do_not_depend_on_a_compressor():
    assert len(digits.encode_digit(np.full((8, 8), 16.0))) == len(digits.encode_digit(np.eye(8) * 7))


WITHOUT_TENSORFLOW = """
import sys
from mambaout_jax import data
from mambaout_jax.data.prepare import ensure_prepared
from mambaout_jax.tasks.classification.source import open_source
from mambaout_jax.tasks.classification.transforms import TrainExample
ensure_prepared("digits", sys.argv[1])
source = open_source("digits", "train", sys.argv[1])
transform = TrainExample(data.TrainTransform((32, 32)))
batch = next(data.train_batches(source, transform, batch_size=8, steps_per_epoch=2, seed=0))
assert batch["image"].shape == (8, 32, 32, 3)
assert "tensorflow" not in sys.modules
"""


@pytest.mark.run
def test_tensorflow_is_neither_required_nor_imported(tmp_path):
    decoy = tmp_path / "tensorflow"
    decoy.mkdir()
    (decoy / "__init__.py").write_text("raise AssertionError('tensorflow was imported')")
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW, str(tmp_path / "data")],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
