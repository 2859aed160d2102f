"""The report shows the curves, the images and the mistakes of a run."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from mambaout_jax.data import DataError
from mambaout_jax.pages.figures import CSS_COLORS
from mambaout_jax.tasks.classification import task
from mambaout_jax.tasks.classification.report import NUM_MISTAKES
from tests.train.finished_run import (
    COUNT,
    Tags,
    edit_json,
    train_line,
    words,
    write_and_read,
    write_metrics,
    write_predictions,
)


@pytest.mark.slow
def test_ids_are_unique_and_references_resolve(logged):
    page = write_and_read(logged)
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    references = {*re.findall(r'href="#([^"]*)"', page), *re.findall(r"url\(#([^)]*)\)", page)}
    assert references
    assert references <= set(ids)


@pytest.mark.slow
def test_figures_use_the_colors_of_the_page_and_have_a_description(logged):
    page = write_and_read(logged)
    svgs = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(svgs) == 5
    for svg in svgs:
        assert not re.search(r"#[0-9a-f]{6}\b", svg)
    for variable in CSS_COLORS.values():
        assert page.count(f"{variable}:") == 3  # light, dark and print
    assert "validation, EMA from 50 at epoch 5 to 90 at epoch 10" in page
    assert all(attributes.get("alt") for tag, attributes in Tags(page).found if tag == "img")


@pytest.mark.slow
def test_more_points_than_pixels_are_drawn_as_means(workdir):
    write_metrics(workdir, [train_line(step, loss=step % 7) for step in range(1, 3001)])
    first, last = sum([1, 2, 3, 4, 5, 6, 0, 1, 2, 3]) / 10, sum(step % 7 for step in range(2991, 3001)) / 10
    page = write_and_read(workdir)
    assert f"training from {first:g} at epoch 2.75 to {last:g} at epoch 1498" in page
    assert len(page) < 200_000


def test_mistakes_come_first_ordered_by_confidence_and_are_marked(workdir):
    page = write_and_read(workdir)
    cards = re.findall(r"<li( class=\"wrong\")?>.*?alt=\"Image (\d+),", page, flags=re.DOTALL)
    assert [int(index) for _, index in cards[:3]] == [11, 13, 7]
    assert [bool(wrong) for wrong, _ in cards] == [True] * 3 + [False] * 16
    assert "<h3>3 mistakes <span" in page


def test_of_many_mistakes_only_the_most_confident_are_shown(workdir, digits):
    mistakes = {index: 0.5 + index / 1000 for index in range(100)}
    write_predictions(workdir, digits.fingerprint, [digits[i]["label"] for i in range(COUNT)], mistakes)
    page = write_and_read(workdir)
    assert page.count('class="wrong"') == NUM_MISTAKES
    assert f"The {NUM_MISTAKES} most confident of 100 mistakes" in page
    assert 'alt="Image 99,' in page
    assert 'alt="Image 10,' not in page


def test_card_shows_the_image_of_its_row(workdir, digits):
    page = write_and_read(workdir)
    uri = re.search(r'src="data:image/png;base64,([^"]*)" alt="Image 11,', page)[1]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri))))
    stored = np.asarray(Image.open(io.BytesIO(digits[11]["image"])))
    np.testing.assert_array_equal(shown, stored)
    truth = digits[11]["label"]
    card = words(page[page.index("Image 11,") :].split("</li>")[0])
    assert card.endswith(f"✗ digit {(truth + 1) % 10} 90.0 % true: digit {truth} 10.0 %")


@pytest.mark.parametrize("change", ["images", "dataset"])
def test_images_of_other_data_are_not_shown(workdir, digits, change):
    if change == "images":  # replaced by others with the same labels
        labels = [digits[i]["label"] for i in range(COUNT)]
        write_predictions(workdir, f"{digits.fingerprint}0", labels, {3: 0.5})
    else:
        edit_json(workdir, "config.json", data={"name": "no_such_dataset", "validation_split": "test"})
    page = write_and_read(workdir)
    assert "The images cannot be shown: " in page
    assert "data:image" not in page
    assert 'class="wrong"' in page


class Photographs:
    """A fake dataset of two photographs, one of them damaged."""

    exif_orientation = False
    fingerprint = "photographs"

    def __len__(self):
        return 2

    def __getitem__(self, index):
        if index:
            return {"image": b"no image", "label": 4}
        file = io.BytesIO()
        Image.effect_mandelbrot((640, 480), (-2, -1.5, 1, 1.5), 30).convert("CMYK").save(file, "JPEG")
        return {"image": file.getvalue(), "label": 3}


def test_photographs_are_shown_small_and_a_broken_record_leaves_a_gap(workdir, monkeypatch):
    monkeypatch.setattr(task, "open_source", lambda *_: Photographs())
    write_predictions(workdir, Photographs.fingerprint, [3, 4], {1: 0.6})
    page = write_and_read(workdir)
    uris = re.findall(r"data:image/jpeg;base64,([^\"]*)", page)
    assert len(uris) == 1
    assert Image.open(io.BytesIO(base64.b64decode(uris[0]))).size == (112, 112)
    assert '<div class="blank">1</div>' in page


def test_unprepared_dataset_is_a_reason_and_no_failure(workdir, monkeypatch):
    def refuse(*_):
        raise DataError("it is not prepared")

    monkeypatch.setattr(task, "open_source", refuse)
    assert "The images cannot be shown: it is not prepared." in write_and_read(workdir)


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
    edit_json(workdir, "environment.json", labels={"class_names": [str(label) for label in range(classes)]})
    assert ('class="confusion"' in write_and_read(workdir)) == shown


def test_classes_of_imagenet_are_shown_in_the_words_of_wordnet(workdir):
    names = ["n01440764", "n01443537", *map(str, range(2, 10))]
    edit_json(workdir, "environment.json", labels={"class_names": names})
    page = write_and_read(workdir)
    assert "goldfish" in page
    assert "n01443537" not in page
