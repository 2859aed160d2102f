import argparse

import pytest

from mambaout_jax.cli import prepare
from mambaout_jax.data import DataError, open_source, prepare_dataset
from tests.data import photos


def run(*words):
    parser = argparse.ArgumentParser()
    prepare.add_arguments(parser)
    return prepare.run(parser.parse_args(words))


def test_digits_are_prepared_and_their_folder_is_told(tmp_path, capsys):
    assert run("digits", "--data-dir", str(tmp_path)) == 0
    assert capsys.readouterr().out == f"digits is prepared in {tmp_path}/digits/1.0.0\n"
    assert len(open_source("digits", "validation", str(tmp_path))) == 360


def test_any_tfds_dataset_is_written_as_array_record(tmp_path, capsys):
    assert photos.Photos.name == "photos"
    for _ in range(2):
        assert run("photos/broken", f"--data-dir={tmp_path}") == 0
        assert f"photos/broken is prepared in {tmp_path}/photos/broken/1.2.0\n" in capsys.readouterr().out
    assert len(open_source("photos/broken", "train", str(tmp_path))) == photos.NUM_TRAIN


def test_an_unknown_name_is_answered_with_the_nearest(tmp_path):
    with pytest.raises(DataError, match="unknown dataset 'imagenete'; did you mean 'imagenette'"):
        run("imagenete", "--data-dir", str(tmp_path))


def test_the_need_for_tensorflow_is_told_before_anything_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r'needs TensorFlow to be prepared .*pip install "mambaout_jax\[prepare\]"'):
        run("imagenette/160px-v2", "--data-dir", str(tmp_path))
    assert not list(tmp_path.rglob("*.tgz"))


@pytest.mark.parametrize(
    ("raised", "expected", "words"),
    [
        (ModuleNotFoundError("No module named 'tensorflow'", name="tensorflow"), DataError, "needs TensorFlow"),
        (ModuleNotFoundError("No module named 'mwxml'", name="mwxml"), DataError, "needs a package .*mwxml"),
        (AssertionError("fetch\n  it by hand"), DataError, "cannot be prepared: fetch it by hand"),
    ],
)
def test_what_tfds_raises_becomes_a_sentence(tmp_path, monkeypatch, raised, expected, words):
    def fail(self, first, count):
        raise raised

    monkeypatch.setattr(photos.Photos, "_generate_examples", fail)
    with pytest.raises(expected, match=words):
        prepare_dataset("photos", str(tmp_path))


def test_a_failed_download_is_a_failure_of_the_machine(tmp_path, monkeypatch, capsys):
    def fail(self, first, count):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(photos.Photos, "_generate_examples", fail)
    assert run("photos", "--data-dir", str(tmp_path)) == 1
    assert "error: no route to host" in capsys.readouterr().err
