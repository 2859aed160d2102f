"""The report shows what a workdir holds, whatever state the run is in."""

import io
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from mambaout_jax.data import DataError, open_source
from mambaout_jax.train import report_pictures
from mambaout_jax.train.errors import RunError
from mambaout_jax.train.report import _interval, write_report
from mambaout_jax.train.report_pictures import CSS_COLOURS, NUM_MISTAKES

COUNT = 360
RESULTS = {
    "ema": {"top1": 99.17, "top5": 100.0, "loss": 0.0712, "count": COUNT},
    "raw": {"top1": 98.61, "top5": 99.72, "loss": 0.0931, "count": COUNT},
    "steps": 1320,
    "train_seconds": 55.2,
    "input_size": [32, 32],
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("datasets"))


@pytest.fixture(scope="module")
def digits(data_dir):
    return open_source("digits", "validation", data_dir)


@pytest.fixture
def workdir(tmp_path, digits, data_dir):
    """A finished run with three mistakes; its metrics, which take time to draw, are missing."""
    data = {"name": "digits", "validation_split": "validation", "data_dir": data_dir}
    config = {"seed": 0, "data": data, "model": {"name": "mambaout_femto"}, "optim": {"clip_grad_norm": None}}
    write_json(tmp_path, "config.json", config)
    names = [f"digit {label}" for label in range(10)]
    environment = {"jax": "0.10.2", "class_names": names, "fingerprint": digits.fingerprint, "command": "main.py -x"}
    write_json(tmp_path, "environment.json", environment)
    write_json(tmp_path, "results.json", RESULTS)
    write_predictions(tmp_path, [digits[i]["label"] for i in range(COUNT)], {7: 0.5, 11: 0.9, 13: 0.7})
    return tmp_path


@pytest.fixture
def logged(workdir):
    """The same run with its metrics."""
    write_metrics(workdir, [*(train_line(step) for step in range(1, 30)), eval_line(10, 50.0), eval_line(20, 90.0)])
    return workdir


def write_json(workdir, name, content):
    (workdir / name).write_text(json.dumps(content))


def edit_json(workdir, name, **changes):
    write_json(workdir, name, json.loads((workdir / name).read_text()) | changes)


def write_metrics(workdir, lines):
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def train_line(step, **changes):
    line = {"kind": "train", "step": step, "epoch": step / 2, "loss": 1 / step, "learning_rate": 0.1, "grad_norm": 2.5}
    return {**line, "images_per_second": 2800.0, "input_wait": 0.02, "seconds": 1.0, **changes}


def eval_line(step, top1):
    score = {"top1": top1, "top5": 100.0, "loss": 0.5, "count": COUNT}
    return {"kind": "eval", "step": step, "epoch": step / 2, "raw": score, "ema": score, "seconds": 1.0}


def write_predictions(workdir, labels, mistakes, classes=10):
    """Predict everything right but for the images in `mistakes`, index -> probability of the wrong class."""
    labels = np.array(labels, np.int32)
    top = np.stack([labels, (labels + 1) % classes], 1)
    probabilities = np.tile(np.float32([0.8, 0.1]), (len(labels), 1))
    for index, probability in mistakes.items():
        top[index] = top[index, ::-1]
        probabilities[index, 0] = probability
    np.savez(workdir / "predictions.npz", labels=labels, classes=top, probabilities=probabilities)


def write_and_read(workdir):
    return write_report(workdir).read_text()


def words(page):
    """What a person reads: the text between tags, on one line."""
    page = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", page).split())


class Tags(HTMLParser):
    """Collect (tag, attributes) and hold that every element that is opened is closed in order."""

    VOID = ("meta", "img", "br")

    def __init__(self, page):
        super().__init__()
        self.found, self.open = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_holds_results_config_versions_and_command(workdir):
    page = words(write_and_read(workdir))
    assert "99.17 % top-1 3 of 360 images of validation wrong" in page
    assert "EMA 99.17 97.58 to 99.72 100.00 0.0712 360" in page
    assert "raw 98.61" in page
    assert "1,320" in page
    assert "55.2 s" in page
    assert "32 x 32 px" in page
    assert "optim.clip_grad_norm unset" in page
    assert "jax 0.10.2" in page
    assert "python main.py -x" in page
    assert "not finished" not in page


def test_page_is_one_file_of_well_formed_html(logged):
    page = write_and_read(logged)
    tags = Tags(page)
    assert not tags.open
    assert not {"script", "link", "iframe"} & {tag for tag, _ in tags.found}
    for tag, attributes in tags.found:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href"):
                assert value.startswith(("data:", "#")), (tag, value)
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    assert len(page) < 300_000


def test_every_id_is_there_once_and_every_reference_finds_one(logged):
    page = write_and_read(logged)
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    references = {*re.findall(r'href="#([^"]*)"', page), *re.findall(r"url\(#([^)]*)\)", page)}
    assert references
    assert references <= set(ids)


def test_pictures_take_their_colours_from_the_page_and_say_what_they_show(logged):
    page = write_and_read(logged)
    svgs = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(svgs) == 5
    for svg in svgs:
        assert not re.search(r"#[0-9a-f]{6}\b", svg)
    for variable in CSS_COLOURS.values():
        assert page.count(f"{variable}:") == 3  # light, dark and print
    assert "test, EMA from 50 at epoch 5 to 90 at epoch 10" in page
    assert all(attributes.get("alt") for tag, attributes in Tags(page).found if tag == "img")


def test_same_workdir_gives_same_bytes_and_leaves_nothing_else(logged):
    before = set(logged.iterdir())
    first = write_and_read(logged)
    assert write_and_read(logged) == first
    assert set(logged.iterdir()) - before == {logged / "report.html"}


def test_unfinished_run_shows_its_last_evaluation_and_says_so(logged):
    (logged / "results.json").unlink()
    (logged / "predictions.npz").unlink()
    page = words(write_and_read(logged))
    assert "This run has not finished. The numbers are those of step 20." in page
    assert "90.00 % top-1" in page
    assert "no predictions yet" in page


def test_run_that_has_only_a_config_gets_a_page(workdir):
    for name in ("results.json", "predictions.npz", "environment.json"):
        (workdir / name).unlink()
    page = words(write_and_read(workdir))
    assert "Nothing was evaluated yet." in page
    assert "Nothing was logged yet." in page


def test_later_of_two_lines_of_one_step_wins(workdir):
    (workdir / "results.json").unlink()
    write_metrics(
        workdir, [train_line(1), eval_line(20, 40.0), train_line(1), eval_line(10, 30.0), eval_line(20, 70.0)]
    )
    page = write_and_read(workdir)
    assert "70.00 % top-1" in words(page)
    assert "test, EMA from 30 at epoch 5 to 70 at epoch 10" in page
    assert "training from 1 at epoch 0.5 to 1 at epoch 0.5" in page


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_diverged_run_names_the_first_bad_step_and_is_drawn_up_to_it(workdir, value):
    (workdir / "results.json").unlink()
    write_metrics(
        workdir, [train_line(1), train_line(2), train_line(3, loss=value, grad_norm=value), train_line(4, loss=value)]
    )
    page = write_and_read(workdir)
    assert "diverged: at step 3 the loss was no finite number (learning rate 0.1" in words(page)
    assert "training from 1 at epoch 0.5 to 0.5 at epoch 1" in page


def test_torn_line_of_metrics_is_counted_and_the_others_shown(logged):
    with (logged / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tra')
    page = write_and_read(logged)
    assert "1 line of metrics.jsonl cannot be read" in words(page)
    assert "to 90 at epoch 10" in page


def test_run_without_moving_average_is_headed_by_its_weights(workdir):
    write_json(workdir, "results.json", {key: value for key, value in RESULTS.items() if key != "ema"})
    page = words(write_and_read(workdir))
    assert "98.61 % top-1" in page
    assert "moving average" not in page


def test_markup_in_any_text_is_shown_and_not_obeyed(workdir):
    evil = "<script>alert(1)</script>&\"'"
    edit_json(workdir, "environment.json", class_names=[evil] * 10, jax=evil, command=evil)
    edit_json(workdir, "config.json", model={"name": evil, evil: evil})
    page = write_and_read(workdir)
    assert "<script" not in page
    assert not Tags(page).open
    assert page.count("&lt;script&gt;") > 20


def test_mistakes_come_first_the_surest_before_the_others_and_all_are_marked(workdir):
    page = write_and_read(workdir)
    cards = re.findall(r"<li( class=\"wrong\")?>.*?alt=\"Test image (\d+),", page, flags=re.DOTALL)
    assert [int(index) for _, index in cards[:3]] == [11, 13, 7]
    assert [bool(wrong) for wrong, _ in cards] == [True] * 3 + [False] * 16
    assert "All 3 mistakes" in page


def test_many_mistakes_are_cut_to_the_surest(workdir, digits):
    mistakes = {index: 0.5 + index / 1000 for index in range(100)}
    write_predictions(workdir, [digits[i]["label"] for i in range(COUNT)], mistakes)
    page = write_and_read(workdir)
    assert page.count('class="wrong"') == NUM_MISTAKES
    assert f"The {NUM_MISTAKES} surest of 100 mistakes" in page
    assert 'alt="Test image 99,' in page
    assert 'alt="Test image 10,' not in page


def test_card_shows_the_image_of_its_row(workdir, digits):
    page = write_and_read(workdir)
    uri = re.search(r'src="data:image/png;base64,([^"]*)" alt="Test image 11,', page)[1]
    shown = np.asarray(Image.open(io.BytesIO(report_pictures.base64.b64decode(uri))))
    stored = np.asarray(Image.open(io.BytesIO(digits[11]["image"])))
    np.testing.assert_array_equal(shown, stored)
    truth = digits[11]["label"]
    card = words(page[page.index("Test image 11,") :].split("</li>")[0])
    assert card.endswith(f"✗ digit {(truth + 1) % 10} 90.0 % is digit {truth} 10.0 %")


@pytest.mark.parametrize("change", ["fingerprint", "count", "dataset"])
def test_images_of_other_data_are_not_shown(workdir, change):
    if change == "fingerprint":
        edit_json(workdir, "environment.json", fingerprint="another")
    elif change == "count":
        write_predictions(workdir, [0] * 50, {3: 0.5})
    else:
        edit_json(workdir, "config.json", data={"name": "no_such_dataset", "validation_split": "test"})
    page = write_and_read(workdir)
    assert "The pictures cannot be shown: " in page
    assert "data:image" not in page
    assert 'class="wrong"' in page


class Photographs:
    """Two photographs, one of them broken, in place of a dataset."""

    fingerprint = "photographs"

    def __len__(self):
        return 2

    def __getitem__(self, index):
        if index:
            return {"image": b"no image"}
        file = io.BytesIO()
        Image.effect_mandelbrot((640, 480), (-2, -1.5, 1, 1.5), 30).convert("CMYK").save(file, "JPEG")
        return {"image": file.getvalue()}


def test_photographs_are_shown_small_and_a_broken_record_leaves_a_gap(workdir, monkeypatch):
    monkeypatch.setattr(report_pictures, "open_source", lambda *_: Photographs())
    edit_json(workdir, "environment.json", fingerprint="photographs")
    write_predictions(workdir, [3, 4], {1: 0.6})
    page = write_and_read(workdir)
    uris = re.findall(r"data:image/jpeg;base64,([^\"]*)", page)
    assert len(uris) == 1
    assert Image.open(io.BytesIO(report_pictures.base64.b64decode(uris[0]))).size == (112, 112)
    assert '<div class="blank">1</div>' in page


def test_confusion_counts_every_image_in_its_row_and_column(workdir, digits):
    page = write_and_read(workdir)
    body = re.search(r'<table class="confusion">.*?<tbody>(.*?)</tbody>', page, flags=re.DOTALL)[1]
    rows = [re.findall(r"<td[^>]*>(\d*)</td>", row) for row in body.strip().split("\n")]
    counts = np.array([[int(cell or 0) for cell in row] for row in rows])
    labels = np.array([digits[i]["label"] for i in range(COUNT)])
    expected = np.diag(np.bincount(labels))
    for index in (7, 11, 13):
        expected[labels[index], labels[index]] -= 1
        expected[labels[index], (labels[index] + 1) % 10] += 1
    np.testing.assert_array_equal(counts, expected)


@pytest.mark.parametrize(("classes", "shown"), [(50, True), (51, False)])
def test_confusion_is_shown_up_to_fifty_classes(workdir, classes, shown):
    edit_json(workdir, "environment.json", class_names=[str(label) for label in range(classes)])
    assert ('class="confusion"' in write_and_read(workdir)) == shown


def test_long_run_stays_a_small_page_and_keeps_its_ends(workdir):
    write_metrics(workdir, [train_line(step) for step in range(1, 20_001)])
    page = write_and_read(workdir)
    assert len(page) < 300_000


def test_interval_is_where_the_score_test_just_rejects():
    low, high = (float(bound) / 100 for bound in _interval(90.0, 500).split(" to "))
    for bound in (low, high):
        assert (0.9 - bound) ** 2 == pytest.approx(1.96**2 * bound * (1 - bound) / 500, rel=1e-2)
    assert _interval(100.0, 360).endswith("to 100.00")
    assert _interval(math.nan, 360) == _interval(50.0, 0) == "unknown"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b"[]"),
        ("config.json", b"\xff\xfe"),
        ("environment.json", b"no"),
        ("results.json", b""),
        ("predictions.npz", b""),
        ("predictions.npz", b"PK\x03\x04 torn"),
    ],
)
def test_damaged_file_is_named_in_one_sentence(workdir, name, content):
    (workdir / name).write_bytes(content)
    with pytest.raises(RunError, match=re.escape(str(workdir / name))) as caught:
        write_report(workdir)
    assert "\n" not in str(caught.value)
    assert not (workdir / "report.html").exists()


def test_predictions_that_do_not_belong_together_are_refused(workdir):
    np.savez(workdir / "predictions.npz", labels=np.zeros(3), classes=np.zeros((2, 5)), probabilities=np.zeros((2, 5)))
    with pytest.raises(RunError, match="do not belong together"):
        write_report(workdir)


def test_folder_that_is_no_workdir_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"has no config\.json"):
        write_report(tmp_path)
    with pytest.raises(RunError, match="does not exist"):
        write_report(tmp_path / "nowhere")


def test_page_that_cannot_be_written_is_one_sentence(workdir):
    (workdir / "report.html").mkdir()
    with pytest.raises(RunError, match=r"report\.html cannot be written"):
        write_report(workdir)


def test_unprepared_dataset_is_a_reason_and_no_failure(workdir, monkeypatch):
    def refuse(*_):
        raise DataError("it is not prepared")

    monkeypatch.setattr(report_pictures, "open_source", refuse)
    assert "The pictures cannot be shown: it is not prepared." in write_and_read(workdir)
