"""Names as other systems write them: ignored leftovers, NFC and NFD, and names that a terminal would not survive."""

import logging
import os
import sys
import traceback
import unicodedata
import warnings
from pathlib import Path

import pytest
from tqdm import tqdm

from mambaout_jax.__main__ import main
from mambaout_jax.data import DataError
from mambaout_jax.data.prepare import folders, imagenet
from mambaout_jax.data.prepare.folders import LEFT_BEHIND, is_left_behind, read_folder
from mambaout_jax.errors import escape_output, print_error, printable
from mambaout_jax.tasks.classification.source import ImageSource, open_source
from mambaout_jax.tasks.classification.task import Classification
from mambaout_jax.weights import WeightsError
from mambaout_jax.weights.timm_config import _class_names
from tests.data import photos
from tests.data.preparation import imagenets

ROOT = Path(__file__).parent.parent.parent
LEFTOVERS = [*LEFT_BEHIND, ".DS_Store", "._0.png", "Icon\r", "Thumbs.db", "$RECYCLE.BIN", "@eaDir", ".Trashes"]
COMPOSED, DECOMPOSED = unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")
HARMLESS = ["café", "a\u00a0b", "a\u3000b", "日本", "👩\u200d🚀", "🏴\U000e0067\U000e007f", "a b"]
HOSTILE = ["Icon\r", "\x1b[2J", "a\nb", "a\u202eb", "a\u2028b", "\x07", os.fsdecode(b"caf\xe9"), "\u2066x", "\ud800"]


def write(folder, *classes):
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(2):
            (folder / name / f"{number}.png").write_bytes(photos.encode(photos.make_photo(7 + number), "PNG"))


@pytest.mark.parametrize("is_folder", [True, False])
@pytest.mark.parametrize("name", sorted(LEFTOVERS))
def test_what_other_programs_leave_is_ignored_at_every_depth(tmp_path, name, is_folder):
    assert is_left_behind(name)
    layouts = {"flat": ("cat", "dog"), "splits": ("train/cat", "train/dog", "val/cat", "val/dog")}
    for layout, classes in layouts.items():
        write(tmp_path / layout, *classes)
        expected = read_folder(tmp_path / layout, "pets")
        for place in {"", *classes, *(os.path.dirname(path) for path in classes)}:
            path = tmp_path / layout / place / name
            if is_folder:
                path.mkdir()
                (path / "0.png").write_text("not an image")
            else:
                path.write_text("not an image")
        assert read_folder(tmp_path / layout, "pets") == expected


def test_imagenet_folders_ignore_them_too(tmp_path):
    imagenets.write_folders(tmp_path, flat=True)
    expected = imagenet.read_folders(tmp_path, imagenets.METADATA)
    for place in (tmp_path, tmp_path / "train", tmp_path / "val"):
        (place / "__MACOSX").mkdir()
        (place / "Icon\r").touch()
    assert imagenet.read_folders(tmp_path, imagenets.METADATA) == expected


def test_a_class_has_one_name_in_both_normal_forms(tmp_path):
    write(tmp_path / "train", DECOMPOSED, "dog")
    write(tmp_path / "val", COMPOSED, "dog")
    dataset = read_folder(tmp_path, "pets")
    assert dataset.class_names == (COMPOSED, "dog")
    assert {item.file_name.split("/")[0] for item in dataset.splits["train"]} == {COMPOSED, "dog"}


def test_copies_in_both_normal_forms_give_the_same_names(tmp_path):
    for form in ("NFC", "NFD"):
        write(tmp_path / form, unicodedata.normalize(form, "café"), "dog")
        (tmp_path / form / "dog" / unicodedata.normalize(form, "é.png")).write_bytes(b"x")
    one, other = (read_folder(tmp_path / form, "pets") for form in ("NFC", "NFD"))
    assert one.class_names == other.class_names
    assert [item.file_name for item in one.splits["train"]] == [item.file_name for item in other.splits["train"]]


def test_two_folders_of_one_name_are_refused(tmp_path):
    write(tmp_path, DECOMPOSED, COMPOSED)
    with pytest.raises(DataError, match="two folders 'café', which differ only in their encoding; merge them"):
        read_folder(tmp_path, "pets")


def test_a_dataset_matches_a_model_in_the_other_normal_form():
    source = ImageSource([], name="pets", split="train", class_names=(COMPOSED, "dog"), fingerprint="")
    object.__new__(Classification).check_source(source, {"class_names": [DECOMPOSED, "dog"]})


@pytest.mark.parametrize("name", HARMLESS)
def test_names_of_all_languages_are_printed_and_prepared_as_they_are(tmp_path, name):
    assert printable(name) == name
    write(tmp_path / "pets", name, "dog")
    assert main(["prepare", "folder", str(tmp_path / "pets"), f"--data-dir={tmp_path}/out", "--workers=1"]) == 0
    source = open_source("pets", "train", str(tmp_path / "out"))
    assert set(source.class_names) == {unicodedata.normalize("NFC", name), "dog"}


@pytest.mark.parametrize("name", [*HARMLESS, *(name for name in HOSTILE if name != "Icon\r")])
def test_prepare_accepts_the_class_names_that_an_export_accepts(tmp_path, name):
    try:
        exported = _class_names(["dog", name], {}, "weights") is not None
    except WeightsError:
        exported = False
    assert exported == (name in HARMLESS)
    if name == "\ud800":  # no file can have this name
        return
    write(tmp_path, name, "dog")
    if exported:
        assert read_folder(tmp_path, "pets").class_names
    else:
        with pytest.raises(DataError, match=r"the name of the class folder .*; rename it"):
            read_folder(tmp_path, "pets")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_characters_are_escaped(name, capsys):
    shown = printable(name)
    assert shown.isprintable()
    shown.encode()
    assert printable(shown) == shown
    print_error(f"{name} cannot be read")
    assert capsys.readouterr().err == f"error: {shown} cannot be read\n"


def test_an_escaped_byte_is_that_of_the_file_name():
    assert printable(os.fsdecode(b"caf\xe9.jpg")) == r"caf\xe9.jpg"
    assert printable("Icon\r") == r"Icon\r"


@pytest.mark.parametrize("name", [name for name in HOSTILE if name not in ("Icon\r", "\ud800")])
def test_prepare_names_a_bad_file_without_its_control_characters(tmp_path, capsys, name):
    write(tmp_path / "pets", "cat", "dog")
    (tmp_path / "pets" / "cat" / name).write_text("not an image")
    assert main(["prepare", "folder", str(tmp_path / "pets"), f"--data-dir={tmp_path}/out", "--workers=1"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error: ", "invalid: "))]
    assert lines
    for line in lines:
        assert line.isprintable()


def warn(name):
    # As `warnings` does, whose output pytest records.
    sys.stderr.write(warnings.formatwarning(f"{name} is ignored", UserWarning, "a.py", 1, ""))


def log(name):
    # A logger without parents: pytest records what reaches the root, and its workers cannot send every name.
    logger = logging.Logger("test")
    logger.addHandler(logging.StreamHandler(sys.stderr))
    logger.warning("%s is ignored", name)


def write_next_to_a_bar(name):
    with tqdm(total=1, desc="reading") as bar:
        tqdm.write(f"unreadable: {name}")
        bar.update()


def refuse_argument(name):
    with pytest.raises(SystemExit):
        main(["models", f"--{name}"])


CHANNELS = {
    "print": print,
    "print to stderr": lambda name: print("file", name, file=sys.stderr),
    "warnings": warn,
    "logging": log,
    "tqdm.write": write_next_to_a_bar,
    "argparse": refuse_argument,
    "traceback": lambda name: traceback.print_exception(ValueError(name)),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("channel", CHANNELS)
def test_all_output_is_escaped(capsys, channel, name):
    escape_output()
    CHANNELS[channel](name)
    shown = "".join(capsys.readouterr())
    assert printable(name).replace(r"\n", "\n") in shown.replace(r"\n", "\n")  # an error is one line
    if channel == "tqdm.write":
        shown = shown.replace("\r", "")
    assert shown.replace("\n", "").isprintable()


def test_progress_bars_are_drawn_as_without_escapes(capsys):
    def draw():
        without_rates = {"total": 2, "bar_format": "{desc} {n_fmt}/{total_fmt}"}
        with tqdm(desc="shards", leave=False, **without_rates) as outer, tqdm(desc="images", **without_rates) as inner:
            for bar in (outer, inner, inner, outer):
                bar.update()
                bar.refresh()
        print("a\tb")
        return "".join(capsys.readouterr())

    plain = draw()
    assert "\x1b[A" in plain
    escape_output()
    assert draw() == plain


def test_all_programs_escape_their_output():
    assert "    escape_output()\n" in (ROOT / "mambaout_jax" / "__main__.py").read_text()


def test_the_list_of_ignored_names_is_the_only_one():
    others = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "mambaout_jax").glob("**/*.py")
        if "thumbs.db" in path.read_text().lower() and path != Path(folders.__file__)
    ]
    assert others == []
