import pytest
from etils import epath

from mambaout_jax import storage
from mambaout_jax.data import DataError
from mambaout_jax.data.prepare.upload import upload
from mambaout_jax.tasks.classification.source import open_source


@pytest.fixture
def folder(tmp_path):
    folder = epath.Path(tmp_path / "made")
    folder.mkdir()
    for name in ("a-train.array_record", "dataset_info.json", "features.json", "label.labels.txt", "origin.json"):
        (folder / name).write_text(name)
    return folder


def record_copies(monkeypatch, folder, fail_at=None):
    """Record the copied files, and fail at one of them."""
    copied, copy = [], type(folder).copy

    def noted(self, target, overwrite=False):
        if self.name == fail_at:
            raise RuntimeError("403 forbidden")
        copied.append(self.name)
        return copy(self, target, overwrite=overwrite)

    monkeypatch.setattr(type(folder), "copy", noted)
    return copied


def test_metadata_is_uploaded_last(folder, tmp_path, monkeypatch):
    copied = record_copies(monkeypatch, folder)
    target = epath.Path(tmp_path / "bucket" / "a" / "1.0.0")
    upload(folder, target)
    assert copied[-2:] == ["dataset_info.json", "features.json"]
    assert {path.name: path.read_text() for path in target.iterdir()} == {name: name for name in copied}


def test_a_failed_upload_is_an_error_and_resumes(folder, tmp_path, monkeypatch):
    target = epath.Path(tmp_path / "bucket")
    with monkeypatch.context() as patch:
        record_copies(patch, folder, fail_at="dataset_info.json")
        with pytest.raises(OSError, match=r"uploading .* failed .403 forbidden.; rerun the same command to resume"):
            upload(folder, target)
    assert not (target / "features.json").exists()
    (target / "label.labels.txt").write_text("cut")
    copied = record_copies(monkeypatch, folder)
    upload(folder, target)
    assert copied == ["label.labels.txt", "dataset_info.json", "features.json"]
    assert (target / "label.labels.txt").read_text() == "label.labels.txt"


def test_an_upload_replaces_all_files_of_another_dataset_even_those_of_the_same_size(folder, tmp_path, monkeypatch):
    target = epath.Path(tmp_path / "bucket")
    upload(folder, target)
    (target / "a-train.array_record-00001-of-00002").write_text("stale")
    for name in ("a-train.array_record", "origin.json"):
        (folder / name).write_text("".join(reversed(name)))
    copied = record_copies(monkeypatch, folder)
    upload(folder, target)
    assert copied[0] == "origin.json"
    assert {path.name: path.read_text() for path in target.iterdir()} == {
        path.name: path.read_text() for path in folder.iterdir()
    }


def test_bucket_urls_are_distinguished_from_paths():
    assert storage.is_remote("gs://bucket/data")
    assert storage.is_remote(epath.Path("gs://bucket/data"))
    assert not storage.is_remote("/data/gs")


def test_an_unknown_url_scheme_is_named():
    with pytest.raises(
        DataError, match=r"data_dir foo://bar begins with 'foo://'; expected a local folder, gs:// or s3://"
    ):
        open_source("digits", "train", "foo://bar")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ImportError("Please install gcsfs"), "its client is not installed: pip install 'etils[epath-gcs]'"),
        (TimeoutError("no answer within 30 s"), "no answer within 30 s"),
        (OSError("Forbidden: b/x/o\nnot you"), "Forbidden: b/x/o not you"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_bucket_errors_are_one_line(error, words):
    assert storage.explain(error) == words
