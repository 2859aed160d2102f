"""`bench-data` prints the throughput of the input pipeline, and whether it is sufficient."""

import json
import os
import re

import numpy as np
import pytest

from mambaout_jax.__main__ import main
from mambaout_jax.data import input_speed
from mambaout_jax.data.input_speed import InputSpeed
from tests.train import tiny

CORES = 16
SPEED = InputSpeed(1.5, 1000.0, (0.064, 0.128), 2.0 * 2**20, 30)


def bench(*words):
    return main(["bench-data", f"--config={tiny.DIGITS}", *words])


@pytest.fixture
def measured(monkeypatch):
    """Patch the measurement with the figures of a host with 16 cores; yield the list of the first batches."""
    batches = []

    def measure_input(source, seconds):
        batches.append(next(source))
        return SPEED

    monkeypatch.setattr(input_speed, "measure_input", measure_input)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(CORES)), raising=False)
    return batches


@pytest.fixture
def unopened(measured, monkeypatch):
    """Patch the measurement without a dataset or workers."""
    monkeypatch.setattr("mambaout_jax.train.inputs.open_batches", lambda config: (row for row in [{}]))


def test_figures_of_this_host_are_measured(capsys):
    assert bench("--seconds=0.2", "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["batches"] >= 3
    assert figures["start_seconds"] > 0
    assert figures["images_per_second"] > 0
    assert 0 < figures["batch_seconds_p50"] <= figures["batch_seconds_p99"]
    assert figures["bytes_per_second"] == pytest.approx(figures["images_per_second"] * (32 * 32 + 4 + 4))


def test_figures_are_printed_with_what_they_are_of(measured, capsys):
    assert bench() == 0
    assert [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()] == [
        "digits, pipeline exact, threads of one process on 16 cores, batch size 64",
        "first batch 1.5 s",
        "images 1000 /s, 500 /s per active core",
        "wait per batch 64.0 ms median, 128.0 ms 99th percentile, over 30 batches",
        "pixels 2.0 MiB/s",
    ]


def test_json_has_every_figure_and_nothing_else_is_printed(unopened, capsys):
    assert bench("--json", "--workers=5", "--config.batch_size=32", "--config.data.num_workers=3") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {
        "dataset": "digits",
        "pipeline": "exact",
        "workers": 5,
        "cores": CORES,
        "batch_size": 32,
        "batches": 30,
        "start_seconds": 1.5,
        "images_per_second": 1000.0,
        "images_per_second_per_core": 200.0,
        "batch_seconds_p50": 0.064,
        "batch_seconds_p99": 0.128,
        "bytes_per_second": 2.0 * 2**20,
    }
    assert not captured.err


@pytest.mark.parametrize(("workers", "active"), [(0, 2), (1, 1), (4, 4), (16, 16), (40, 16)])
def test_rate_of_a_core_is_shared_by_those_that_work(unopened, capsys, workers, active):
    assert bench("--json", f"--workers={workers}") == 0
    assert json.loads(capsys.readouterr().out)["images_per_second_per_core"] == 1000 / active


@pytest.mark.parametrize(("need", "words"), [("800", "800 images/s, with 25 %"), ("1000", "1000 images/s")])
def test_a_host_with_enough_throughput_passes(unopened, capsys, need, words):
    assert bench("--need", need) == 0
    assert f"Enough for {words}" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(("workers", "cores"), [(0, 8), (4, 16), (5, 20), (16, 64)])
def test_a_host_without_enough_throughput_fails_with_the_cores_needed(unopened, capsys, workers, cores):
    assert bench("--need=4000", f"--workers={workers}") == 1
    sentence = capsys.readouterr().out.splitlines()[-1]
    assert sentence.startswith("Not enough for 4000 images/s: 25 %.")
    assert f" {cores} cores; --config.data.pipeline=fast or more --workers may help." in sentence


def test_a_part_of_a_core_counts_as_one(unopened, capsys):
    assert bench("--need=1001", "--workers=4") == 1
    assert " 5 cores; " in capsys.readouterr().out


@pytest.mark.parametrize(("need", "enough"), [(800, True), (4000, False)])
def test_json_and_the_exit_code_agree_on_whether_it_is_enough(unopened, capsys, need, enough):
    assert bench("--json", f"--need={need}") == (0 if enough else 1)
    figures = json.loads(capsys.readouterr().out)
    assert (figures["need"], figures["enough"]) == (need, enough)


def test_a_changed_key_is_what_is_measured(measured, capsys):
    assert bench("--json") == 0
    assert bench("--json", "--config.data.pipeline=fast") == 0
    assert '"pipeline": "fast"' in capsys.readouterr().out
    exact, fast = measured
    np.testing.assert_array_equal(exact["label"], fast["label"])
    assert not np.array_equal(exact["image"], fast["image"])  # Pillow's bicubic filter is not OpenCV's


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--config.data.pipelne=fast"], r"pipelne.*pipeline"),
        (["--config.data.pipeline=faster"], r"config\.data\.pipeline is 'faster'; expected 'exact' or 'fast'"),
        (["--config=configs/digit.py"], r"--config=configs/digit\.py does not exist"),
        (["--workers=-1"], r"config\.data\.num_workers is -1; expected an integer of at least 0"),
        (["--config.data.name=digit"], r"unknown dataset 'digit'; did you mean 'digits'"),
        (
            ["--config.batch_size=2000"],
            r"config\.batch_size is 2000; expected at most 1437, .*: add --config\.batch_size=1024$",
        ),
    ],
)
def test_invalid_input_is_one_sentence(measured, capsys, words, sentence):
    assert bench(*words) == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert captured.err.count("\n") == 1
    assert re.match(f"error: .*{sentence}", captured.err)
    assert not measured


@pytest.mark.parametrize("flag", ["--seconds", "--need"])
@pytest.mark.parametrize("number", ["0", "-1", "nan", "inf", "soon"])
def test_a_time_and_a_rate_have_to_be_positive_numbers(measured, capsys, flag, number):
    with pytest.raises(SystemExit, match="2"):
        bench(f"{flag}={number}")
    assert f"argument {flag}: '{number}' is not a positive number; see " in capsys.readouterr().err
    assert not measured
