"""Copies of the metrics have the same records as metrics.jsonl, and a resumed run continues them."""

import contextlib
import csv
import importlib
import json
import os
import subprocess
import sys
import types

import pytest
from etils import epath

from mambaout_jax.extras import MissingExtraError
from mambaout_jax.machine import MachineError
from mambaout_jax.run.config import KEYS
from mambaout_jax.run.errors import RunError
from mambaout_jax.tasks.classification.task import Classification
from mambaout_jax.train.metrics import MetricWriter
from mambaout_jax.train.writers import WRITERS, CsvWriter, LoggedRun, TensorBoardWriter, check_writers

ROOT = epath.Path(__file__).parents[2]


def train_record(step, **changes):
    record = {"step": step, "epoch": step / 10, "seconds": 1.5, "loss": 1 / step, "images_per_second": 9.0}
    return {**record, "input_wait": 0.0, **changes}


def open_writer(folder, first_step, *writers):
    return MetricWriter(
        epath.Path(folder),
        num_steps=100,
        first_step=first_step,
        steps_per_epoch=10,
        metrics=Classification.metrics,
        writers=writers,
        config={"seed": 3},
    )


def rows(path):
    with open(path) as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def test_the_config_names_all_writers():
    assert KEYS["metric_writers"].accept == tuple(WRITERS)


def test_pytorch_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise RuntimeError('PyTorch is imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for module in [name for name in sys.modules if name.partition(".")[0] in ("torch", "tensorboardX")]:
        monkeypatch.delitem(sys.modules, module)
    open_writer(tmp_path, 0, "tensorboard").close()
    assert list((tmp_path / "tensorboard").iterdir())
    with pytest.raises(RuntimeError, match="PyTorch is imported"):
        importlib.import_module("torch")


def test_csv_files_have_the_numbers_of_the_records(tmp_path):
    writer = open_writer(tmp_path, 0, "csv")
    records = [train_record(step) for step in (5, 10)]
    for record in records:
        writer.train(record)
    writer.evaluation({"step": 10, "epoch": 1.0, "seconds": 2.0, "raw": {"top1": 0.5, "loss": 1.0}}, "images")
    writer.close()
    assert rows(tmp_path / "train.csv") == records
    assert rows(tmp_path / "eval.csv") == [{"step": 10, "epoch": 1, "seconds": 2, "raw/top1": 0.5, "raw/loss": 1}]


def test_a_resumed_run_continues_csv_files_at_its_first_step(tmp_path):
    writer = open_writer(tmp_path, 0, "csv")
    for step in (5, 10, 15):
        writer.train(train_record(step))
    writer.close()
    with open(tmp_path / "train.csv", "a") as file:
        file.write("20,2")  # a kill
    writer = open_writer(tmp_path, 10, "csv")
    for step in (15, 20):
        writer.train(train_record(step, loss=7.0))
    writer.close()
    assert [(row["step"], row["loss"]) for row in rows(tmp_path / "train.csv")] == [
        (5, 0.2),
        (10, 0.1),
        (15, 7),
        (20, 7),
    ]


def test_a_new_number_becomes_a_column(tmp_path):
    writer = open_writer(tmp_path, 0, "csv")
    writer.train(train_record(5))
    writer.train(train_record(10, grad_norm=2.0))
    writer.train(train_record(15))
    writer.close()
    assert rows(tmp_path / "train.csv") == [train_record(5), train_record(10, grad_norm=2.0), train_record(15)]


def test_a_writer_that_is_not_installed_is_named_before_training(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r'config.metric_writers with wandb requires wandb; .*\[wandb\]"$'):
        check_writers(("tensorboard", "csv", "wandb"))


@pytest.mark.run
def test_weights_and_biases_gets_the_records_of_both_parts_of_a_run(tmp_path):
    """Without a network, in its offline mode, whose files `wandb sync` uploads."""
    pytest.importorskip("wandb")
    program = """
import sys
from tests.train.test_writers import open_writer, train_record
writer = open_writer(sys.argv[1], int(sys.argv[2]), "wandb")
for step in map(int, sys.argv[3:]):
    writer.train(train_record(step))
writer.close()
"""
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}
    for steps in (["0", "5", "10", "15"], ["10", "15", "20"]):
        subprocess.run([sys.executable, "-c", program, tmp_path, *steps], cwd=ROOT, env=environment, check=True)
    runs = sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert {run.stem for run in runs} == {f"run-{json.loads((tmp_path / 'wandb.json').read_text())['id']}"}
    first, second = (run.read_bytes() for run in runs)
    for written, value in ((first, 1 / 5), (first, 1 / 10), (first, 1 / 15), (second, 1 / 20)):
        assert b"train/loss" in written
        assert str(value).encode() in written
    assert str(1 / 15).encode() not in second  # it was sent before


@pytest.mark.parametrize("fails", [False, True])
def test_a_failed_run_has_that_state_on_weights_and_biases(tmp_path, monkeypatch, fails):
    wandb = pytest.importorskip("wandb")
    codes = []
    run = types.SimpleNamespace(
        define_metric=lambda *_, **__: None, log=lambda _: None, finish=lambda exit_code: codes.extend([exit_code])
    )
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    with contextlib.suppress(RunError), contextlib.ExitStack() as cleanup:
        cleanup.callback(open_writer(tmp_path, 0, "wandb").close)
        if fails:
            raise RunError("the disk is full")
    assert codes == [int(fails)]


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("CommError", MachineError, r"cannot be reached \(.*no answer.*\); start the run again"),
        ("AuthenticationError", RunError, "log in with `wandb login`"),
    ],
)
def test_an_outage_is_a_fault_of_the_machine_and_a_wrong_key_is_not(tmp_path, monkeypatch, kind, error, words):
    wandb = pytest.importorskip("wandb")

    def init(**_):
        raise getattr(wandb.errors, kind)("no answer")

    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(error, match=words):
        open_writer(tmp_path, 0, "wandb")


def test_steps_of_another_config_are_sent_again(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    sent = []
    run = types.SimpleNamespace(define_metric=lambda *_, **__: None, log=sent.append, finish=lambda exit_code: None)
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    for config, expected in (({"lr": 1.0}, 2), ({"lr": 1.0}, 2), ({"lr": 0.5}, 4)):
        writer = WRITERS["wandb"](LoggedRun(epath.Path(tmp_path), "run", 0, config))
        for step in (5, 10):
            writer.write("train", step, {"loss": 1.0})
        writer.close()
        assert len(sent) == expected


def test_every_output_is_closed_even_if_one_fails(tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr(CsvWriter, "close", lambda self: 1 / 0)
    monkeypatch.setattr(TensorBoardWriter, "close", lambda self: closed.extend([self]))
    writer = open_writer(tmp_path, 0, "csv", "tensorboard")
    with pytest.raises(ZeroDivisionError):
        writer.close()
    assert closed
    assert writer._file.closed


@pytest.mark.run
def test_without_a_login_the_remedy_is_one_sentence(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(
        RunError, match=r"^Weights & Biases could not start the run .*; log in with `wandb login`, or set "
    ):
        WRITERS["wandb"](LoggedRun(epath.Path(tmp_path), "run", 0, {}))
