import argparse
import re
import shlex
import signal

import pytest

from mambaout_jax.cli import prepare
from mambaout_jax.data import DataError
from mambaout_jax.data.prepare import prepare_dataset
from mambaout_jax.data.sources import open_records
from mambaout_jax.machine import MachineError
from mambaout_jax.tasks.classification.source import open_source
from tests.data import photos
from tests.data.preparation import imagenets


def run(*words):
    parser = argparse.ArgumentParser()
    prepare.add_arguments(parser)
    return prepare.run(parser.parse_args(words))


@pytest.mark.slow
def test_digits_are_prepared_and_their_folder_is_printed(tmp_path, capsys):
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


@pytest.mark.parametrize(
    ("name", "command"),
    [("imagenet2012", "imagenet --tars=DIR"), ("coco2017", "coco --root=DIR"), ("ade20k:1.0.0", "ade20k --zip=FILE")],
)
def test_a_dataset_that_cannot_be_downloaded_leads_to_the_command_that_makes_it(tmp_path, name, command):
    with pytest.raises(DataError, match=f"run: python -m mambaout_jax prepare {command}"):
        run(name, "--data-dir", str(tmp_path))
    with pytest.raises(DataError, match=f"is not prepared in .*; run: python -m mambaout_jax prepare {command}"):
        open_records(name, "train", str(tmp_path))


def test_missing_tensorflow_is_an_error_before_the_download(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r'requires TensorFlow .*pip install ".*\[prepare\]"'):
        run("imagenette/160px-v2", "--data-dir", str(tmp_path))
    assert not list(tmp_path.rglob("*.tgz"))


@pytest.mark.parametrize(
    ("raised", "expected", "words"),
    [
        (ModuleNotFoundError("No module named 'tensorflow'", name="tensorflow"), DataError, "requires TensorFlow"),
        (ModuleNotFoundError("No module named 'mwxml'", name="mwxml"), DataError, "requires another package: .*mwxml"),
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


@pytest.fixture
def insects(tmp_path):
    for number in range(40):
        path = tmp_path / "insects" / ("ant", "bee")[number % 4 == 0] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photos.encode(photos.make_photo(20 + number)))
    return tmp_path / "insects"


def test_a_folder_of_images_is_prepared_and_its_flags_are_printed(insects, tmp_path, capsys):
    out = tmp_path / "my data"
    assert run("folder", str(insects), "--data-dir", str(out), "--workers=1") == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[:4] == [
        f"insects is prepared in {out}/insects/1.0.0",
        "  train: 40 images of 2 classes; 10 to 30, median 20, per class",
        "  without a validation split; rerun the same command with --val 0.1 --overwrite to make one",
        "Use it with:",
    ]
    flags = dict(word.removeprefix("--config.data.").split("=", 1) for word in shlex.split(printed.splitlines()[4]))
    assert sorted(flags) == ["data_dir", "name", "train_split", "validation_split"]
    parts = [
        open_source(flags["name"], flags[f"{split}_split"], flags["data_dir"]) for split in ("train", "validation")
    ]
    assert [len(part) for part in parts] == [36, 4]
    assert run("folder", str(insects), "--data-dir", str(out)) == 0
    assert capsys.readouterr().out.splitlines()[:3] == [
        f"insects is already prepared in {out}/insects/1.0.0",
        "  from the same images and classes; --overwrite writes it again",
        "  train: 40 images of 2 classes",
    ]


@pytest.mark.parametrize("kind", ["folder", "segmentation"])
def test_the_suggested_options_make_a_validation_split(insects, tmp_path, kind, capsys):
    if kind == "segmentation":
        (insects / "ant").rename(insects / "images")
        (insects / "masks").mkdir()
        for path in (insects / "images").iterdir():
            with photos.Image.open(path) as image:
                size = image.size
            mask = photos.Image.linear_gradient("L").resize(size).point(lambda value: value // 128)
            mask.save(insects / "masks" / f"{path.stem}.png")
    command = (kind, str(insects), "--data-dir", str(tmp_path / "out"), "--workers=1")
    assert run(*command) == 0
    (hint,) = [line for line in capsys.readouterr().out.splitlines() if "without a validation split" in line]
    options = re.search(r"command with (.*) to make", hint)[1].split()
    assert run(*command, *options) == 0
    assert "  validation: " in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["tars", "folder", "tfrecord"])
def test_imagenet_is_prepared_from_each_form(tmp_path, kind, capsys, monkeypatch):
    metadata, source = imagenets.METADATA, tmp_path / "source"
    if kind == "tars":
        metadata = imagenets.write_tars(source)
    elif kind == "folder":
        imagenets.write_folders(source, flat=True)
    else:
        imagenets.write_tfrecords(source)
    monkeypatch.setattr("mambaout_jax.data.prepare.imagenet.official_metadata", lambda: metadata)
    assert run("imagenet", f"--{kind}={source}", f"--data-dir={tmp_path}/out", "--workers=1") == 0
    assert capsys.readouterr().out.splitlines() == [
        f"imagenet2012 is prepared in {tmp_path}/out/imagenet2012/5.1.0",
        "  train: 15 images of 3 classes; 5 per class",
        "  validation: 6 images of 3 classes; 2 per class",
        "  converted 2 images to RGB JPEG",
        "Use it with:",
        f"  --config.data.name=imagenet2012 --config.data.data_dir={tmp_path}/out --config.data.train_split=train "
        "--config.data.validation_split=validation",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("imagenet",), "prepare imagenet requires --tars DIR, --folder DIR or --tfrecord DIR"),
        (("imagenet", "--tars="), "requires --tars DIR"),
        (("imagenet", "--tars=a", "--folder=b"), "requires --tars DIR, --folder DIR or"),
        (("imagenet", "--tars=a", "--name=b"), "prepare imagenet does not take --name; leave it out"),
        (("imagenet", "--tars=a", "--val=0.1", "--skip-bad"), "does not take --val and --skip-bad; leave them out"),
        (("folder",), "requires the folder of the images"),
        (("folder", "a", "--tars=b"), "prepare folder does not take --tars; leave it out"),
        (("ade20k", "--zip=a", "--folder=b"), "requires --zip FILE or --folder DIR"),
        (("coco", "--root=a", "--val=0.1"), "prepare coco does not take --val; leave it out"),
        (("coco-format", "a"), "requires the folder of the images and --annotations FILE"),
        (("coco-format", "a", "--annotations=b", "--val=0.1", "--val-annotations=c"), "leave out one of them"),
        (("digits", "a"), "prepare digits does not take a folder; leave it out"),
        (("digits", "--workers=2"), "prepare digits does not take --workers; leave it out"),
    ],
)
def test_inconsistent_arguments_are_one_sentence(words, message):
    with pytest.raises(DataError, match=message):
        run(*words)


@pytest.mark.parametrize("number", ["0", "-1", "two"])
def test_a_number_of_workers_has_to_be_one(number, capsys):
    with pytest.raises(SystemExit):
        run("folder", "a", f"--workers={number}")
    assert f"'{number}' is not an integer of at least 1" in capsys.readouterr().err


def test_a_full_disk_is_a_failure_of_the_machine(insects, tmp_path, capsys, monkeypatch):
    def fail(*_):
        raise MachineError("cannot write shard 1: no space left")

    monkeypatch.setattr("mambaout_jax.data.prepare.images.write_dataset", fail)
    before = signal.getsignal(signal.SIGTERM)
    assert run("folder", str(insects), f"--data-dir={tmp_path}/out") == 1
    assert capsys.readouterr().err == "error: cannot write shard 1: no space left\n"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("count", range(2, 17))
def test_too_few_images_for_a_validation_split_are_mentioned(tmp_path, capsys, count):
    for number in range(count):
        path = tmp_path / "few" / ("ant", "bee")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photos.encode(photos.make_photo(20 + number)))
    assert run("folder", str(tmp_path / "few"), f"--data-dir={tmp_path}/out", "--workers=1") == 0
    lines = capsys.readouterr().out.splitlines()
    flags = dict(word.removeprefix("--config.data.").split("=", 1) for word in shlex.split(lines[-1]))
    parts = [len(open_source("few", flags[f"{split}_split"], f"{tmp_path}/out")) for split in ("train", "validation")]
    told = f"  {count} images: too few for a validation split; using the training images"
    if told in lines:
        assert parts == [count, count]
        assert (flags["train_split"], flags["validation_split"]) == ("train", "train")
        with pytest.raises(DataError):
            open_source("few", "train[90%:]", f"{tmp_path}/out")
    else:
        assert sum(parts) == count
        assert min(parts) > 0
    assert (told in lines) == (count < 5)
