"""A whole run resumes to the same bits, stops on a signal, and reports errors in one sentence."""

import json
import os
import re
import shutil
import signal
import threading
import time
from types import SimpleNamespace
from unittest import mock

import jax
import numpy as np
import pytest

from mambaout_jax.evaluate.evaluation import evaluate
from mambaout_jax.report.html import write_report
from mambaout_jax.run.errors import DivergedError, RunError, StoppedError
from mambaout_jax.run.signals import StopSignals
from mambaout_jax.run.workdir import load_run
from mambaout_jax.tasks.classification import task
from mambaout_jax.train.loop import _evaluate, train
from tests.marks import slow_but
from tests.train import tiny
from tests.train.runs import assert_same_weights, main, records, start


def test_run_writes_the_documented_files(unbroken):
    results = json.loads((unbroken / "results.json").read_text())
    assert results["steps"] == 2 * tiny.STEPS_PER_EPOCH
    assert results["input_size"] == [32, 32]
    assert results["ema"]["count"] == results["raw"]["count"] == 360
    assert [record["step"] for record in records(unbroken, "train")] == [2, 4, 5, 6, 8, 10]
    assert [record["step"] for record in records(unbroken, "eval")] == [5, 10]
    assert all(np.isfinite(record["loss"]) for record in records(unbroken, "train"))
    assert list((unbroken / "tensorboard").iterdir())
    assert "<html" in (unbroken / "report.html").read_text()
    predictions = np.load(unbroken / "predictions.npz")
    assert predictions["classes"].shape == (360, 5)
    hits = predictions["classes"][:, 0] == predictions["labels"]
    np.testing.assert_allclose(100 * hits.mean(), results["ema"]["top1"])


@pytest.mark.slow
def test_evaluation_equals_the_end_of_training(unbroken):
    results = json.loads((unbroken / "results.json").read_text())
    record = evaluate(None, unbroken)
    assert record["weights"] == f"step {results['steps']}"
    (scores,) = record["sets"]
    for weights in ("raw", "ema"):
        assert scores[weights] == pytest.approx(results[weights], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", slow_but([7], [7, 500]))
def test_evaluation_counts_every_image_once_for_ragged_sizes(unbroken, batch_size):
    results = json.loads((unbroken / "results.json").read_text())
    (scores,) = evaluate(tiny.config(eval_batch_size=batch_size), unbroken)["sets"]
    assert scores["raw"] == pytest.approx(results["raw"], rel=1e-5)


@pytest.mark.run
def test_killed_and_resumed_run_equals_unbroken_run(unbroken, tmp_path):
    workdir = tmp_path / "run"
    changes = {"save_every_steps": 1}
    process = start(workdir, lambda _: any(r["step"] >= 3 for r in records(workdir, "train")), **changes)
    process.kill()
    process.communicate()
    assert not (workdir / "results.json").exists()
    done = main(workdir, **changes)
    assert done.returncode == 0, done.stderr
    assert_same_weights(workdir, unbroken)
    expected = json.loads((unbroken / "results.json").read_text())
    assert f"{expected['ema']['top1']:.2f}" in done.stdout
    # It saved at its last step already.
    before = (workdir / "metrics.jsonl").read_text()
    train(tiny.config(**changes), workdir)
    assert (workdir / "metrics.jsonl").read_text() == before


@pytest.mark.slow
def test_refused_config_leaves_the_workdir_as_it_was(unbroken):
    before = (unbroken / "config.json").read_text()
    with pytest.raises(RunError, match="does not match"):
        train(tiny.config(**{"model.dims": (8, 24), "resume": "any"}), unbroken)
    with pytest.raises(RunError, match=r"is at step \d+ but the config trains for 5 steps"):
        train(tiny.config(num_epochs=1, resume="any"), unbroken)
    assert (unbroken / "config.json").read_text() == before


def test_broken_config_of_a_workdir_is_named(unbroken, tmp_path):
    shutil.copytree(unbroken, tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text("{")
    with pytest.raises(RunError, match=r"config\.json is not a valid config"):
        train(tiny.config(), tmp_path / "run")


@pytest.mark.slow
def test_finished_run_is_not_run_again(unbroken, capfd):
    before = (unbroken / "metrics.jsonl").read_text()
    assert train(tiny.config(), unbroken) == json.loads((unbroken / "results.json").read_text())
    assert f"has finished all {2 * tiny.STEPS_PER_EPOCH} steps" in capfd.readouterr().err
    assert (unbroken / "metrics.jsonl").read_text() == before


@pytest.mark.run
def test_finished_run_is_evaluated_again_after_a_change_of_the_evaluation(unbroken, tmp_path):
    shutil.copytree(unbroken, tmp_path / "run")
    changed = tiny.config(resume="any", **{"data.validation_split": "validation[:100]"})
    assert train(changed, tmp_path / "run")["ema"]["count"] == 100
    assert train(tiny.config(resume="any"), tmp_path / "run")["ema"]["count"] == 360


def test_an_evaluation_whose_loss_is_not_finite_is_a_divergence():
    scored = SimpleNamespace(scores={"raw": {"top1": 10.0, "loss": float("nan")}})
    with pytest.raises(DivergedError, match="the loss of the raw weights on 'validation' is nan at step 7"):
        _evaluate(
            mock.Mock(return_value=scored),
            SimpleNamespace(split="validation"),
            mock.Mock(),
            None,
            mock.Mock(),
            {"step": 7},
        )


@pytest.mark.run
@pytest.mark.parametrize("damage", [lambda text: text.replace('"task": "classification",', ""), lambda text: text[:40]])
def test_finished_run_with_results_of_an_earlier_version_or_damaged_ones_gives_its_scores(unbroken, tmp_path, damage):
    shutil.copytree(unbroken, tmp_path / "run")
    file = tmp_path / "run" / "results.json"
    expected, text = json.loads(file.read_text()), damage(file.read_text())
    assert text != file.read_text()
    file.write_text(text)
    results = train(tiny.config(), tmp_path / "run")
    for scores in (results, json.loads(file.read_text())):
        assert all(scores[weights] == pytest.approx(expected[weights], rel=1e-5) for weights in ("raw", "ema"))


@pytest.mark.run
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.nightly)])
def test_signal_in_training_saves_and_resumes_to_the_same_bits(unbroken, tmp_path, number):
    workdir = tmp_path / "run"
    process = start(workdir, lambda _: records(workdir, "train"))
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    assert "the state is saved" in errors
    assert "Traceback" not in errors
    saved = [int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
    assert max(saved) >= 2
    train(tiny.config(), workdir)
    assert_same_weights(workdir, unbroken)


@pytest.mark.run
def test_signal_during_compilation_ends_at_once_with_exit_code_75(unbroken, tmp_path):
    workdir = tmp_path / "run"
    process = start(workdir, lambda process: "parameters, on" in process.stderr.readline(), **{"model.depths": (2, 2)})
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    assert "Traceback" not in errors
    assert not records(workdir, "train")


def test_compilation_is_abandoned_after_a_signal():
    release = threading.Event()
    with StopSignals() as stop:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(StoppedError, match="SIGTERM"):
            stop.interruptible(lambda: release.wait(60), "Waiting.")
    release.set()


@pytest.mark.slow
def test_work_that_takes_long_says_what_it_is(capsys):
    with StopSignals() as stop:
        stop.interruptible(lambda: None, "At once.")
        stop.interruptible(lambda: time.sleep(2.5), "Compiling.")
    assert capsys.readouterr().err.split("\n") == ["Compiling.", ""]


def test_interruptible_work_returns_its_result_or_error():
    with StopSignals() as stop:
        assert stop.interruptible(lambda: 3, "Counting.") == 3
        with pytest.raises(ZeroDivisionError):
            stop.interruptible(lambda: 1 / 0, "Dividing.")


@pytest.mark.nightly
def test_signal_in_evaluation_saves_and_resumes_to_the_same_bits(unbroken, tmp_path, monkeypatch):
    top_classes, calls = task.top_classes, []

    def interrupted(*arrays):
        calls.append(None)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return top_classes(*arrays)

    monkeypatch.setattr(task, "top_classes", interrupted)
    with pytest.raises(StoppedError):
        train(tiny.config(), tmp_path / "run")
    assert not records(tmp_path / "run", "eval")
    monkeypatch.undo()
    train(tiny.config(), tmp_path / "run")
    assert [record["step"] for record in records(tmp_path / "run", "eval")] == [5, 10]
    assert_same_weights(tmp_path / "run", unbroken)


@pytest.mark.run
def test_divergence_names_step_rate_and_norm_and_keeps_the_last_good_checkpoint(tmp_path):
    config = tiny.config(**{"optim.learning_rate": 1e30, "optim.warmup_epochs": 0, "save_every_steps": 1})
    with pytest.raises(
        DivergedError, match=r"step \d+ has loss \S+ and gradient norm \S+ at learning rate 9.755\S*e\+29"
    ) as end:
        train(config, tmp_path / "run")
    bad = int(re.search(r"step (\d+)", str(end.value))[1])
    assert records(tmp_path / "run", "train")[-1]["loss"] is None
    assert "diverged" in write_report(tmp_path / "run").read_text()
    run = load_run(tmp_path / "run", "raw")
    assert run.step < bad
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run.variables))


def test_other_config_is_refused_with_the_differing_keys_unless_allowed(unbroken, tmp_path):
    with pytest.raises(RunError, match=r"config.seed was 0, is 1.*--config.resume=any"):
        train(tiny.config(seed=1), unbroken)
    with pytest.raises(RunError, match="has a run"):
        train(tiny.config(resume="never"), unbroken)


@pytest.mark.run
def test_workdir_that_cannot_be_written_is_one_sentence_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    done = main(tmp_path / "file" / "run")
    assert done.returncode == 2
    assert "is not writable" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_checkpoints_that_are_not_a_directory_are_one_sentence_at_the_start(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(RunError, match=r"checkpoints is not a directory; move it, or use another --workdir"):
        train(tiny.config(), tmp_path)


def test_full_disk_is_one_sentence_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(RunError, match=r" 0 MiB of free space but the checkpoints need"):
        train(tiny.config(), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 2000}, "batch_size is 2000; expected at most 1437"),
        ({"data.crop_scale": (0.1, 1.0), "model.img_size": 20}, "img_size"),
        ({"data.name": "digit"}, "digits"),
        ({"data.train_split": "training"}, "train"),
        ({"model.name": "mambaout_tinny"}, "mambaout_tiny"),
        ({"model.drop_path_rate": 2.0}, "drop_path_rate"),
        ({"model.crop_pct": 2.0}, "crop_pct is 2.0"),
        ({"model.crop_mode": "middle"}, "crop_mode is 'middle'"),
        ({"model.mean": (0.1, 0.2)}, "mean is .*; expected one number per channel, for in_chans 1"),
        ({"model.std": (0.0,)}, "std is .*; expected a non-empty tuple of numbers above 0"),
    ],
)
def test_invalid_config_is_refused_before_anything_is_written(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        train(tiny.config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.nightly
def test_profile_traces_the_configured_steps(tmp_path):
    train(tiny.config(**{"num_epochs": 1, "profile.start_step": 2, "profile.num_steps": 1}), tmp_path / "run")
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
