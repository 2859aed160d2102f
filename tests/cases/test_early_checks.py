"""What can be checked from a config alone is checked before data is opened, and data before a long search."""

import pytest

from mambaout_jax.__main__ import main
from mambaout_jax.distributed.errors import DistributedError
from mambaout_jax.errors import UserError
from mambaout_jax.run.errors import RunError
from mambaout_jax.study import study
from mambaout_jax.train import loop
from tests.study.study_runs import EXPERIMENT, settings
from tests.train import tiny

FAULTS = {
    "mesh.fsdp": {"mesh.fsdp": 64},
    "augment.mixup_group": {"augment.mixup_alpha": 0.2, "augment.mixup_group": 24, "batch_size": 64},
    "data.auto_augment": {"data.auto_augment": "rand-m15"},
    "loss.mesa": {"loss.mesa": 1.0, "optim.ema_decay": None},
    "data.eval_sets": {"data.eval_sets": "imagenet_a,imagenet_v3"},
}
FAULTS_OF_STUDIES = {
    **FAULTS,
    "study.baseline": {"study.baseline": "nowhere"},
    "train_split": {"data.train_split": "train[10%:]"},
    "init_from": {"init_from": "runs/x"},
    "loss.teacher": {"loss.teacher": "runs/x"},
    "seed": {"seed": 2**32 - 1},
}


@pytest.fixture
def closed(monkeypatch):
    for module in (study, loop):
        monkeypatch.setattr(module, "open_split", lambda *_: pytest.fail("the data was opened"))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_checks_its_config_before_its_data(closed, tmp_path, fault):
    with pytest.raises(UserError):
        loop.train(tiny.config(**FAULTS[fault]), tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fault", FAULTS_OF_STUDIES)
def test_a_study_checks_its_config_before_its_data(closed, tmp_path, fault):
    with pytest.raises(UserError):
        study.run_study(settings(tmp_path, **FAULTS_OF_STUDIES[fault]), tmp_path / "study", 2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("workdir", ["gs://bucket/study", "sweep[1]", ""])
def test_a_study_checks_its_workdir_before_its_data(closed, tmp_path, monkeypatch, workdir):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="workdir"):
        study.run_study(settings(tmp_path), workdir, 2)


@pytest.mark.slow
@pytest.mark.parametrize(("batch_size", "fits"), [(718, True), (719, False), (1000, False)])
def test_a_batch_above_a_fold_is_refused_before_the_search_for_widths(tmp_path, monkeypatch, batch_size, fits):
    class SearchError(Exception):
        pass

    def search(*_):
        raise SearchError

    monkeypatch.setattr(study, "design_variants", search)
    config = settings(tmp_path, batch_size=batch_size)  # 1,437 images in two folds, of which one is for testing
    with pytest.raises(SearchError if fits else RunError):
        study.run_study(config, tmp_path / "study", 2)


def test_devices_are_checked_by_their_number(closed, tmp_path):
    with pytest.raises(DistributedError, match=r"config.mesh.fsdp is 64"):
        study.run_study(settings(tmp_path, **FAULTS["mesh.fsdp"]), tmp_path / "study", 2)


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["--dataset=digit"], "digits"),
        (["--dataset=pathfnder/32"], "pathfinder"),
    ],
)
def test_a_mistyped_dataset_is_answered_with_the_nearest(tmp_path, capsys, words, near):
    assert main(["study", f"--workdir={tmp_path}/study", *words]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"did you mean {near!r}?" in line


def test_an_unknown_argument_of_an_experiment_is_answered_in_its_own_words(capsys):
    assert main(["study", "--dataset=photos", f"--config={EXPERIMENT}:photo"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --config={EXPERIMENT}: no experiment for 'photo'; expected one of digits")
