"""`predict` takes folders: all images below, in order, without what `prepare folder` ignores."""

import json
import os

import pytest
from PIL import Image

from mambaout_jax.__main__ import main
from mambaout_jax.data import DataError
from mambaout_jax.data.prepare.folders import LEFT_BEHIND
from mambaout_jax.evaluate.predict import find_files
from mambaout_jax.run import workdir as workdirs
from tests.train.test_predict import COLOURS, MeanColour, tiny


@pytest.fixture
def photos(tmp_path):
    for place in ("b.png", "a/z.jpg", "a/b/c.png", "c/A.JPG", "c/n.heic"):
        (tmp_path / "photos" / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), COLOURS["red"]).save(tmp_path / "photos" / place, "PNG")
    return tmp_path / "photos"


def names(folder, found):
    return [os.path.relpath(file, folder) for file in found]


def test_all_images_below_a_folder_are_found_in_sorted_order(photos):
    assert names(photos, find_files([str(photos)]).images) == ["a/b/c.png", "a/z.jpg", "b.png", "c/A.JPG", "c/n.heic"]


def test_files_and_folders_keep_the_order_of_the_command_line(photos):
    paths = [str(photos / place) for place in ("c", "b.png", "missing.png", "a")]
    expected = ["c/A.JPG", "c/n.heic", "b.png", "missing.png", "a/b/c.png", "a/z.jpg"]
    assert names(photos, find_files(paths).images) == expected


@pytest.mark.parametrize("is_folder", [True, False])
@pytest.mark.parametrize("name", [*sorted(LEFT_BEHIND), ".DS_Store", "._b.png"])
def test_what_other_programs_leave_is_passed_over(photos, name, is_folder):
    expected = find_files([str(photos)])
    for place in (photos, photos / "a" / "b"):
        (place / name).mkdir() if is_folder else (place / name).touch()
        if is_folder:
            (place / name / "x.png").touch()
    assert find_files([str(photos)]) == expected


def test_other_files_in_a_folder_are_listed_and_named_ones_are_predicted(photos):
    for name in ("labels.csv", "a/README"):
        (photos / name).touch()
    assert names(photos, find_files([str(photos)]).others) == ["a/README", "labels.csv"]
    assert find_files([str(photos / "labels.csv")]) == ([str(photos / "labels.csv")], [])


@pytest.mark.parametrize("inside", [None, "notes.txt", ".hidden.png", "__MACOSX/a.png", "inner/"])
def test_a_folder_without_images_is_one_sentence(tmp_path, inside, capsys):
    (tmp_path / "empty").mkdir()
    if inside:
        path = tmp_path / "empty" / inside
        path.parent.mkdir(exist_ok=True)
        path.mkdir() if inside.endswith("/") else path.touch()
    with pytest.raises(DataError, match="has no images"):
        find_files([str(tmp_path / "empty")])
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / "empty")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'empty'} has no images")


def test_a_loop_of_links_is_walked_once(photos):
    expected = find_files([str(photos)])
    (photos / "a" / "loop").symlink_to(photos)
    assert find_files([str(photos)]) == expected


@pytest.fixture
def run(monkeypatch):
    config = tiny.config(**{"model.in_chans": 3})
    labels = {"class_names": list(COLOURS)}
    run = workdirs.Run(config, config.build_task(), MeanColour(), 1.0, labels, 7, "raw")
    monkeypatch.setattr(workdirs, "restore_run", lambda workdir, weights=None: run)
    return run


@pytest.mark.parametrize("place", ["a", "a/b", ".", "link"])
def test_no_file_is_written_into_a_folder_with_inputs(run, photos, capsys, place):
    """Also where an earlier prediction is among the inputs."""
    (photos / "link").symlink_to(photos / "a")
    before = sorted(photos.rglob("*"))
    assert main(["predict", "runs/x", str(photos / "a"), "--out", str(photos / place)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "contains the input" in line
    assert sorted(photos.rglob("*")) == before
    assert main(["predict", "runs/x", str(photos / "a"), "--out", str(photos / "a" / "out")]) == 0
    assert main(["predict", "runs/x", str(photos / "a"), "--out", str(photos / "a" / "out")]) == 2


def test_a_file_that_cannot_be_written_is_an_error_of_its_own(run, photos, capsys):
    long = photos / "a" / f"{'n' * 250}.png"
    (photos / "b.png").rename(long)
    out = photos.parent / "out"
    assert main(["predict", "runs/x", str(long), str(photos / "c" / "A.JPG"), "--out", str(out)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {long}: its files cannot be written to {out} (File name too long)")
    assert f"written: {out / 'A_classes.json'}" in captured.out
    assert [path.name for path in out.iterdir()] == ["A_classes.json"]
    assert main(["predict", "runs/x", str(long), str(photos / "c"), "--out", str(out), "--json"]) == 2
    failed, *others = json.loads(capsys.readouterr().out)
    assert "File name too long" in failed["error"]
    assert [entry["files"] for entry in others] == [[str(out / f"{name}_classes.json")] for name in ("A", "n")]


@pytest.mark.parametrize("name", ["a\rb.png", os.fsdecode(b"caf\xe9.png"), "a\u202eb.png", "a\nb.png"])
def test_hostile_names_in_a_folder_are_predicted_and_printed_safely(tmp_path, monkeypatch, capsys, name):
    config = tiny.config(**{"model.in_chans": 3})
    labels = {"class_names": list(COLOURS)}
    run = workdirs.Run(config, config.build_task(), MeanColour(), 1.0, labels, 7, "raw")
    monkeypatch.setattr(workdirs, "restore_run", lambda workdir, weights=None: run)
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (40, 40), COLOURS["red"]).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / f"{name}.txt").touch()
    assert main(["predict", "runs/x", str(tmp_path / "photos")]) == 0
    captured = capsys.readouterr()
    assert "red" in captured.out
    for line in [*captured.out.splitlines(), *captured.err.splitlines()]:
        assert line.isprintable()
    assert main(["predict", "runs/x", "--json", str(tmp_path / "photos")]) == 0
    [answer] = json.loads(capsys.readouterr().out)
    assert answer["file"] == str(tmp_path / "photos" / name)
