"""Every experiment of a study is complete, documents its command, and has the same variants."""

import ast
import re
import runpy

import pytest

from mambaout_jax.analyze.ssm_need import measure_first_stage
from mambaout_jax.run.config import flatten_config, parse_config
from tests.study.study_runs import EXPERIMENT

NAMES = sorted(path.stem for path in EXPERIMENT.parent.glob("*.py"))


def load(name):
    config = runpy.run_path(str(EXPERIMENT.parent / f"{name}.py"))["get_config"]()
    if name == "photos":
        config.data.name = "photos"
    return config


def build_model(name, num_classes):
    return parse_config(load(name)).build_task().build_model({"num_classes": num_classes})


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_is_whole_and_builds_its_model(name):
    assert "token_mixer" in build_model(name, 10).options


@pytest.mark.parametrize(("name", "verdict"), [("digits", "short"), ("pathfinder", "long")])
def test_there_is_an_experiment_for_short_and_for_long_sequences(name, verdict):
    assert measure_first_stage(build_model(name, 2))["verdict"] == verdict


def test_an_experiment_is_of_the_dataset_that_it_is_named_after():
    assert {name: load(name).data.name for name in NAMES} == {name: name for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_tells_how_to_run_it(name):
    text = ast.get_docstring(ast.parse((EXPERIMENT.parent / f"{name}.py").read_text()))
    assert f"python -m mambaout_jax study --dataset {name}" in text
    assert f"python main.py --config=configs/study/{name}.py --workdir=" in text
    assert "Cost and result: " in text
    for key in re.findall(r"--config\.([\w.]+)=", text):
        assert key in flatten_config(load(name)), key


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_evaluates_at_its_end(name):
    config = load(name)
    assert config.num_epochs % config.eval_every_epochs == 0
    assert config.init_from is None


def test_all_experiments_have_the_same_variants():
    first, *others = (load(name).study for name in NAMES)
    assert all(other == first for other in others)
