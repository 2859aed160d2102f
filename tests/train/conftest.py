"""Fixtures: a finished run, and workdirs for reports."""

import pytest

from mambaout_jax.data.prepare import ensure_prepared
from mambaout_jax.report.html import write_report
from mambaout_jax.tasks.classification.source import open_source
from mambaout_jax.train.loop import train
from tests.train import tiny
from tests.train.finished_run import COUNT, RESULTS, eval_line, train_line, write_json, write_metrics, write_predictions


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory):
    """A finished run in this process, with its report; tests must not change it."""
    workdir = tmp_path_factory.mktemp("unbroken") / "run"
    train(tiny.config(), workdir)
    write_report(workdir)
    return workdir


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("datasets"))


@pytest.fixture(scope="module")
def digits(data_dir):
    ensure_prepared("digits", data_dir)
    return open_source("digits", "validation", data_dir)


@pytest.fixture
def workdir(tmp_path, digits, data_dir):
    """A finished run with three mistakes, without metrics, because plots are slow."""
    data = {"name": "digits", "validation_split": "validation", "data_dir": data_dir}
    config = {"seed": 0, "data": data, "model": {"name": "mambaout_femto"}, "optim": {"clip_grad_norm": None}}
    write_json(tmp_path, "config.json", config)
    names = [f"digit {label}" for label in range(10)]
    environment = {"jax": "0.10.2", "labels": {"class_names": names}, "command": "main.py -x"}
    write_json(tmp_path, "environment.json", environment)
    write_json(tmp_path, "results.json", RESULTS)
    write_predictions(
        tmp_path, digits.fingerprint, [digits[i]["label"] for i in range(COUNT)], {7: 0.5, 11: 0.9, 13: 0.7}
    )
    return tmp_path


@pytest.fixture
def logged(workdir):
    """The same run with its metrics."""
    write_metrics(workdir, [*(train_line(step) for step in range(1, 30)), eval_line(10, 50.0), eval_line(20, 90.0)])
    return workdir
