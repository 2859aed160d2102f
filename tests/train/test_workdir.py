"""A workdir is refused if its files are damaged or it has another task's run."""

import functools
import json

import pytest

from mambaout_jax.evaluate.evaluation import evaluate
from mambaout_jax.models import ModelError
from mambaout_jax.run.errors import RunError
from mambaout_jax.run.pretrained import load_pretrained_for
from mambaout_jax.run.workdir import claim_workdir, is_workdir, load_environment, load_run
from mambaout_jax.tasks import registry
from mambaout_jax.tasks.classification.task import Classification
from mambaout_jax.tasks.errors import TaskError
from mambaout_jax.train.loop import train
from tests.train import tiny, written_run

NAMES = [f"digit {label}" for label in range(10)]


def change_config(workdir, key, value):
    recorded = json.loads((workdir / "config.json").read_text())
    *sections, name = key.split(".")
    functools.reduce(dict.__getitem__, sections, recorded)[name] = value
    (workdir / "config.json").write_text(json.dumps(recorded))


class Sorting(Classification):
    """Another task."""

    name = "sorting"


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"class_names": null}', '{"labels": null}', '{"labels": ["a"]}'])
def test_an_environment_without_labels_is_named(tmp_path, content):
    (tmp_path / "environment.json").write_text(content)
    with pytest.raises(RunError, match=r"environment\.json is damaged"):
        load_environment(tmp_path)


@pytest.mark.parametrize("labels", [{}, {"class_names": 5}, {"num_classes": "10"}, {"num_classes": 0}])
def test_invalid_labels_are_named(tmp_path, labels):
    written_run.write(tmp_path, NAMES)
    (tmp_path / "environment.json").write_text(json.dumps({"labels": labels}))
    with pytest.raises(TaskError, match="expected class names or the number of classes"):
        load_run(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("model.name", None, r"config\.json: config\.model\.name is unset"),
        ("model.name", "mambaout_nano", "'mambaout_nano' is not a known model"),
        ("optim.warmup_epochs", None, r"config\.json: config\.optim\.warmup_epochs is unset"),
        ("data.on_bad_record", ["raise"], r"config\.json: config\.data\.on_bad_record"),
    ],
)
def test_a_damaged_config_is_named(tmp_path, key, value, words):
    written_run.write(tmp_path, NAMES)
    change_config(tmp_path, key, value)
    with pytest.raises((RunError, ModelError), match=words):
        load_run(tmp_path)


@pytest.mark.slow
def test_a_run_of_another_task_is_not_evaluated(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "BUILT_IN", (Classification, Sorting))
    written_run.write(tmp_path, NAMES, task="sorting")
    with pytest.raises(RunError, match=r"a run of the task 'sorting' but config\.task is 'classification'"):
        evaluate(tiny.config(), tmp_path)


@pytest.mark.slow
def test_the_last_layer_of_another_task_is_neither_evaluated_nor_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "BUILT_IN", (Classification, Sorting))
    given, new = tmp_path / "given", tmp_path / "new"
    written_run.write(given, NAMES, task="sorting")
    for use in (evaluate, train):
        with pytest.raises(RunError, match=r"trained for the task 'sorting' but config\.task is 'classification'; set"):
            use(tiny.config(init_from=str(given)), new)


@pytest.mark.slow
def test_a_run_starts_from_another_task_with_a_new_last_layer(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "BUILT_IN", (Classification, Sorting))
    written_run.write(tmp_path, NAMES, task="sorting")
    config = tiny.config(init_from=str(tmp_path), init_head="new")
    model = config.build_task().build_model({"class_names": NAMES})
    assert load_pretrained_for(tmp_path, model, head_task=None).model.name == model.name


@pytest.mark.parametrize("resume", ["same", "any", "never"])
def test_checkpoints_without_a_config_are_those_of_no_known_run(tmp_path, resume):
    written_run.write(tmp_path, NAMES)
    (tmp_path / "config.json").unlink()
    with pytest.raises(RunError, match=r"has checkpoints but no config\.json"):
        claim_workdir(tmp_path, tiny.config(resume=resume))


def test_a_folder_without_checkpoints_is_not_a_run(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    assert not is_workdir(tmp_path)
    written_run.write(tmp_path, NAMES)
    assert is_workdir(tmp_path)


@pytest.mark.parametrize("resume", ["same", "any"])
def test_a_run_of_another_task_is_refused_by_name(tmp_path, monkeypatch, resume):
    monkeypatch.setattr(registry, "BUILT_IN", (Classification, Sorting))
    written_run.write(tmp_path, NAMES, task="sorting")
    with pytest.raises(RunError, match=r"a run of the task 'sorting' but config\.task is 'classification'"):
        claim_workdir(tmp_path, tiny.config(resume=resume))
