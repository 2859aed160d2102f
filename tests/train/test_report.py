"""The report shows the content of a workdir in any state of the run."""

import json
import math
import re

import numpy as np
import pytest

from mambaout_jax.report.html import write_report
from mambaout_jax.run.errors import RunError
from mambaout_jax.tasks.classification.report import _interval
from tests.train.finished_run import (
    RESULTS,
    Tags,
    edit_json,
    eval_line,
    train_line,
    words,
    write_and_read,
    write_json,
    write_metrics,
)


@pytest.mark.parametrize(
    ("options", "title"),
    [({}, "mambaout_femto on digits"), ({"drop_rate": 0.5, "img_size": 32}, "mambaout_femto on digits"),
     ({"depths": [1, 1, 2, 1]}, "mambaout_femto (modified) on digits")],
)  # fmt: skip
def test_page_says_if_the_model_differs_from_its_variant(workdir, options, title):
    config = json.loads((workdir / "config.json").read_text())
    write_json(workdir, "config.json", {**config, "model": {**config["model"], **options}})
    assert f"<h1>{title}</h1>" in write_and_read(workdir)


def test_page_has_results_config_versions_and_command(workdir):
    page = words(write_and_read(workdir))
    assert "99.17 % top-1 3 of 360 images of validation misclassified" in page
    assert "EMA 99.17 97.58 to 99.72 100.00 0.0712 360" in page
    assert "raw 98.61" in page
    assert "1,320" in page
    assert "55.2 s" in page
    assert "input 32x32, crop 1.0 center" in page
    assert "optim.clip_grad_norm unset" in page
    assert "jax 0.10.2" in page
    assert "python main.py -x" in page
    assert "not finished" not in page


@pytest.mark.slow
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


@pytest.mark.slow
def test_same_workdir_gives_same_bytes_and_leaves_nothing_else(logged):
    before = set(logged.iterdir())
    first = write_and_read(logged)
    assert write_and_read(logged) == first
    assert set(logged.iterdir()) - before == {logged / "report.html"}


@pytest.mark.slow
def test_unfinished_run_shows_its_last_evaluation_and_says_so(logged):
    (logged / "results.json").unlink()
    (logged / "predictions.npz").unlink()
    page = words(write_and_read(logged))
    assert "This run has not finished. The results are from step 20." in page
    assert "90.00 % top-1" in page
    assert "No predictions yet" in page


@pytest.mark.slow
def test_records_of_other_kinds_are_not_damage(logged):
    with (logged / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "save", "step": 20, "blocked_seconds": 0.1}\n')
    assert "cannot be read" not in words(write_and_read(logged))


def test_run_that_has_only_a_config_gets_a_page(workdir):
    for name in ("results.json", "predictions.npz", "environment.json"):
        (workdir / name).unlink()
    page = words(write_and_read(workdir))
    assert "No evaluation yet." in page
    assert "Nothing has been logged yet." in page


@pytest.mark.slow
def test_later_of_two_lines_of_one_step_wins(workdir):
    (workdir / "results.json").unlink()
    write_metrics(
        workdir, [train_line(1), eval_line(20, 40.0), train_line(1), eval_line(10, 30.0), eval_line(20, 70.0)]
    )
    page = write_and_read(workdir)
    assert "70.00 % top-1" in words(page)
    assert "validation, EMA from 30 at epoch 5 to 70 at epoch 10" in page
    assert "training from 1 at epoch 0.5 to 1 at epoch 0.5" in page


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_diverged_run_names_the_first_bad_step_and_is_drawn_up_to_it(workdir, value):
    (workdir / "results.json").unlink()
    write_metrics(
        workdir, [train_line(1), train_line(2), train_line(3, loss=value, grad_norm=value), train_line(4, loss=value)]
    )
    page = write_and_read(workdir)
    assert "diverged: at step 3 the loss was not finite (learning rate 0.1" in words(page)
    assert "training from 1 at epoch 0.5 to 0.5 at epoch 1" in page


@pytest.mark.slow
def test_torn_line_of_metrics_is_counted_and_the_others_shown(logged):
    with (logged / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tra')
    page = write_and_read(logged)
    assert "1 line of metrics.jsonl cannot be read" in words(page)
    assert "to 90 at epoch 10" in page


def test_headline_of_a_run_without_average_is_of_the_raw_weights(workdir):
    write_json(workdir, "results.json", {key: value for key, value in RESULTS.items() if key != "ema"})
    page = words(write_and_read(workdir))
    assert "98.61 % top-1" in page
    assert "moving average" not in page


def test_markup_in_any_text_is_escaped(workdir):
    evil = "<script>alert(1)</script>&\"'"
    edit_json(workdir, "environment.json", labels={"class_names": [evil] * 10}, jax=evil, command=evil)
    edit_json(workdir, "config.json", data={"name": evil, "train_split": evil}, init_from=evil)
    page = write_and_read(workdir)
    assert "<script" not in page
    assert not Tags(page).open
    assert page.count("&lt;script&gt;") > 20


def test_interval_is_where_the_score_test_just_rejects():
    low, high = (float(bound) / 100 for bound in _interval(90.0, 500).split(" to "))
    for bound in (low, high):
        assert (0.9 - bound) ** 2 == pytest.approx(1.96**2 * bound * (1 - bound) / 500, rel=1e-2)
    assert _interval(100.0, 360).endswith("to 100.00")
    assert _interval(math.nan, 360) == _interval(50.0, 0) == "unknown"


DAMAGED_LINES = (
    {"kind": "train", "step": float("inf")},
    {"kind": "train", "step": "many"},
    {"kind": "eval", "step": 30, "epoch": 15.0, "raw": None, "ema": 5},
    {"kind": "train", "step": "23", "epoch": 11.5, "loss": 0.5},
)


@pytest.mark.slow
def test_lines_that_no_run_writes_do_not_spoil_the_page(workdir):
    write_metrics(workdir, [train_line(20), eval_line(20, 97.5), *DAMAGED_LINES])
    assert "2 lines of metrics.jsonl cannot be read" in words(write_and_read(workdir))
    edit_json(workdir, "results.json", steps="many")
    edit_json(workdir, "environment.json", command=3)
    assert "99.17 % top-1" in words(write_and_read(workdir))


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


def test_predictions_of_inconsistent_shapes_are_refused(workdir):
    arrays = {"labels": np.zeros(3), "classes": np.zeros((2, 5)), "probabilities": np.zeros((2, 5)), "fingerprint": ""}
    np.savez(workdir / "predictions.npz", **arrays)
    with pytest.raises(RunError, match="inconsistent shapes"):
        write_report(workdir)


def test_folder_that_is_not_a_workdir_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"has no config\.json"):
        write_report(tmp_path)
    with pytest.raises(RunError, match="does not exist"):
        write_report(tmp_path / "nowhere")


def test_page_that_cannot_be_written_is_one_sentence(workdir):
    (workdir / "report.html").mkdir()
    with pytest.raises(RunError, match=r"report\.html cannot be written"):
        write_report(workdir)
