"""A workdir has one study, which resumes after a kill or a divergence."""

import itertools
import json
import os
import shutil
import signal
import threading

import pytest

from mambaout_jax.run.errors import RunError, StoppedError
from mambaout_jax.run.workdir import lock_workdir
from mambaout_jax.study import study as study_module
from mambaout_jax.study.study import run_study
from tests.study.study_runs import VARIANTS, Training, settings
from tests.train.finished_run import Tags, words


@pytest.fixture
def training(monkeypatch):
    return Training(monkeypatch)


@pytest.fixture
def experiment(tmp_path):
    return settings(tmp_path / "datasets")


@pytest.fixture
def workdir(tmp_path):
    return tmp_path / "study"


@pytest.mark.run
def test_a_run_without_its_report_is_not_finished(training, experiment, workdir):
    run_study(experiment, workdir, 2)
    shutil.rmtree(workdir / "runs" / "conv" / "0")
    (workdir / "runs" / "conv" / "1" / "report.html").unlink()
    training.configs.clear()
    with pytest.raises(FileExistsError, match="conv/1"):  # raised by the fake `train`, which shows that it was called
        run_study(experiment, workdir, 2)
    assert set(training.configs) == {("conv", 0), ("conv", 1)}


@pytest.mark.slow
def test_a_kill_before_the_plan_was_written_leaves_a_folder_of_a_study(training, experiment, workdir):
    workdir.mkdir()
    (workdir / ".plan.json.123").write_text("{")
    (workdir / ".lock").write_text("")
    run_study(experiment, workdir, 2)
    assert (workdir / "study.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("content", ["[]", "3", "null"])
def test_a_plan_that_is_not_an_object_is_one_sentence(training, experiment, workdir, content):
    workdir.mkdir()
    (workdir / "plan.json").write_text(content)
    with pytest.raises(RunError, match=r"plan.json is not the plan of a study"):
        run_study(experiment, workdir, 2)


@pytest.mark.slow
def test_a_folder_of_something_else_is_left_as_it_is(training, experiment, tmp_path):
    (tmp_path / "photo.png").write_text("")
    with pytest.raises(RunError, match="has files but no study"):
        run_study(experiment, tmp_path, 2)
    assert {path.name for path in tmp_path.iterdir()} <= {"photo.png", "datasets"}


@pytest.mark.slow
def test_a_run_whose_files_are_damaged_is_named(training, experiment, workdir):
    run_study(experiment, workdir, 2)
    (workdir / "runs" / "conv" / "1" / "metrics.jsonl").unlink()
    with pytest.raises(RunError, match=r"conv/1 does not contain the files of a finished run .*remove it"):
        run_study(experiment, workdir, 2)


@pytest.mark.slow
def test_a_second_study_in_the_same_folder_is_refused(training, experiment, workdir, monkeypatch):
    trained = []

    def train(config, folder):
        if not trained:
            trained.append(folder)
            with pytest.raises(RunError, match=r"study is in use by another process; wait .*--workdir"):
                run_study(experiment, workdir, 2)
        return training(config, folder)

    monkeypatch.setattr(study_module, "train", train)
    run_study(experiment, workdir, 2)
    run_study(experiment, workdir, 2)  # the lock was released
    assert len(training.configs) == 8


def test_a_lock_lasts_as_long_as_its_context(tmp_path):
    with lock_workdir(tmp_path), pytest.raises(RunError, match="in use"), lock_workdir(tmp_path):
        pass
    with lock_workdir(tmp_path):
        pass


def test_a_folder_without_locks_is_a_warning(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    with lock_workdir(tmp_path):
        assert "cannot be locked (Function not implemented)" in capsys.readouterr().err


@pytest.mark.slow
def test_a_diverged_variant_is_not_trained_again(training, experiment, workdir):
    training.diverging = {("matched-ssm-causal", 1), ("matched-vit-full", 0)}
    found = run_study(experiment, workdir, 3)
    # Repeats after a divergence are not trained.
    expected = set(itertools.product(["conv", "removed-ssm-causal"], range(3)))
    assert set(training.configs) == expected | {
        ("matched-ssm-causal", 0), ("matched-ssm-causal", 1), ("matched-vit-full", 0),
    }  # fmt: skip
    assert [variant["name"] for variant in found["variants"]] == ["conv", "removed-ssm-causal"]
    assert [(variant["variant"], variant["repeat"]) for variant in found["diverged"]] == [
        ("matched-ssm-causal", 1), ("matched-vit-full", 0),
    ]  # fmt: skip
    page = (workdir / "study.html").read_text()
    assert not Tags(page).open
    for variant in found["diverged"]:
        assert f"{variant['variant']}, repeat {variant['repeat']}: {variant['reason']}" in words(page)
    assert found["comparisons"][1]["verdict"] in words(page)
    assert json.loads((workdir / "study.json").read_text())["diverged"] == json.loads(json.dumps(found["diverged"]))
    # The fake `train` asserts that no run is trained twice.
    assert run_study(experiment, workdir, 3) == found

    training.diverging.clear()
    for variant in found["diverged"]:
        shutil.rmtree(workdir / "runs" / variant["variant"] / str(variant["repeat"]))
        del training.configs[variant["variant"], variant["repeat"]]
    assert not run_study(experiment, workdir, 3)["diverged"]


@pytest.mark.slow
def test_a_damaged_record_of_a_divergence_is_one_sentence(training, experiment, workdir):
    training.diverging = {("matched-vit-full", 0)}
    run_study(experiment, workdir, 2)
    (workdir / "runs" / "matched-vit-full" / "0" / "diverged.json").write_text("[]")
    with pytest.raises(RunError, match=r"diverged.json is not a valid record of a divergence .*remove"):
        run_study(experiment, workdir, 2)


@pytest.mark.slow
def test_a_signal_does_not_wait_for_the_design_of_the_variants(training, experiment, workdir, monkeypatch):
    done = threading.Event()

    def design(model, study, build):
        os.kill(os.getpid(), signal.SIGTERM)
        done.wait(5)
        return VARIANTS

    monkeypatch.setattr(study_module, "design_variants", design)
    with pytest.raises(StoppedError):
        run_study(experiment, workdir, 2)
    done.set()
    assert not workdir.exists()


@pytest.mark.slow
def test_a_study_of_an_earlier_version_is_refused(training, experiment, workdir):
    run_study(experiment, workdir, 2)
    plan = json.loads((workdir / "plan.json").read_text())
    plan["twins"] = plan.pop("variants")
    (workdir / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(RunError, match=r"contains a study of another version of this program; use another"):
        run_study(experiment, workdir, 2)
