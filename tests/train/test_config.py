import dataclasses
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from mambaout_jax.checks import ConfigKey
from mambaout_jax.plugins import PluginError
from mambaout_jax.run.config import (
    KEYS,
    DataConfig,
    OptimConfig,
    ProfileConfig,
    RunConfig,
    changed_keys,
    default_config,
    from_json,
    nest,
    parse_config,
    parse_flat,
)
from mambaout_jax.run.errors import RunError
from mambaout_jax.tasks import registry
from mambaout_jax.tasks.api import Task
from mambaout_jax.tasks.classification.task import Classification
from mambaout_jax.tasks.errors import TaskError
from tests.train import tiny

ROOT = Path(__file__).parents[2]


def test_config_survives_json():
    config = tiny.config()
    assert from_json(config.to_json()) == config
    assert parse_config(nest(config.values)) == config


def test_the_defaults_are_valid_but_for_the_names_of_dataset_and_model():
    config = default_config()
    with pytest.raises(RunError, match=r"config\.model\.name is unset"):
        parse_config(config)
    config.model.name = "mambaout_femto"
    with pytest.raises(RunError, match=r"config\.data\.name is unset"):
        parse_config(config)
    config.data.name = "digits"
    assert parse_config(config).values == {name: key.default for name, key in KEYS.items()} | {
        name: key.default for name, key in Classification.keys.items()
    } | {"data.name": "digits", "model.name": "mambaout_femto"}


def test_keys_that_a_config_lacks_have_their_defaults():
    config = parse_config({"data": {"name": "digits"}, "model": {"name": "mambaout_femto"}})
    assert config.num_epochs == KEYS["num_epochs"].default
    assert config.task_options["data.crop"] == Classification.keys["data.crop"].default


def test_a_mistyped_key_in_a_config_file_is_refused_where_it_is_set():
    with pytest.raises((AttributeError, KeyError), match="learning_rate"):
        default_config().optim.learningrate = 0.1


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("batch_size", -1, "config.batch_size is -1; expected an integer of at least 1"),
        ("batch_size", 2.5, "config.batch_size is 2.5; expected an integer"),
        ("batch_size", True, "config.batch_size is True"),
        ("seed", None, "config.seed is unset"),
        (
            "model.ls_init_value",
            np.float32(1e-5),
            r"config.model.ls_init_value is .* of type float32; expected a number",
        ),
        ("optim.b2", 1.0, "config.optim.b2 is 1.0; expected a number from 0 to below 1"),
        ("data.crop_scale", (True, True), "config.data.crop_scale"),
        ("num_epochs", 0, "config.num_epochs is 0"),
        ("data.hflip_prob", 1.5, "config.data.hflip_prob is 1.5; expected a number from 0 to 1"),
        ("data.crop", "centre", "config.data.crop is 'centre'; expected 'resize' or 'random_resized'"),
        ("data.crop_scale", (0.5, 0.1), "config.data.crop_scale"),
        ("data.crop_scale", (0.5,), "config.data.crop_scale"),
        ("data.crop_scale", ("a", "b"), "config.data.crop_scale"),
        ("data.crop_ratio", (1.0, float("inf")), "config.data.crop_ratio"),
        ("data.crop_pct", 1e-7, "config.data.crop_pct is 1e-07; expected a number from 0.1 to 1, or None"),
        ("optim.learning_rate", float("nan"), "config.optim.learning_rate is nan"),
        ("optim.warmup_epochs", 50, "config.optim.warmup_epochs 50 .* add --config.optim.warmup_epochs=0$"),
        ("optim.warmup_steps", 50, "config.optim.warmup_steps is 50 .* warms up for whole epochs; add"),
        ("microbatch_size", 0, "config.microbatch_size is 0; expected an integer of at least 1"),
        ("data.pipeline", "slow", "config.data.pipeline is 'slow'; expected 'exact' or 'fast'"),
        ("data.crop_mode", "centre", "config.data.crop_mode is 'centre'"),
    ],
)
def test_value_that_does_not_fit_is_named(key, value, words):
    with pytest.raises(RunError, match=words):
        tiny.config(**{key: value})


@pytest.mark.parametrize("length", [{"num_steps": 20}, {"num_epochs": 2}])
def test_warmup_ends_before_the_last_step(length):
    """The number of steps of an epoch, here 10, is known only with the dataset."""
    linear = {"optim.schedule": "linear", "optim.warmup_epochs": 0, **length}
    assert tiny.config(**linear, **{"optim.warmup_steps": 19}).total_steps(10) == 20
    with pytest.raises(RunError, match=r"warmup_steps is 20; expected less than the number of steps, 20: add .*=4$"):
        tiny.config(**linear, **{"optim.warmup_steps": 20}).total_steps(10)


def test_integer_serves_as_number():
    assert tiny.config(**{"optim.learning_rate": 1}).optim.learning_rate == 1


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("optim.learningrate", "config.optim.learningrate is not a known key; did you mean config.optim.learning_rate"),
        ("model.dept", "config.model.dept is not an option of mambaout_femto; did you mean config.model.depths"),
        ("data", "config.data is 3; it is a section with keys such as config.data.name, "),
        ("seed.x", "config.seed.x is not a known key; did you mean config.seed"),
    ],
)
def test_unknown_key_suggests_the_nearest_by_their_full_names(key, words):
    with pytest.raises(RunError, match=words):
        parse_flat({**tiny.config().values, key: 3})


def test_every_key_has_a_field_of_its_section():
    sections = {"data": DataConfig, "optim": OptimConfig, "profile": ProfileConfig}
    fields = {f"{name}.{field.name}" for name, kind in sections.items() for field in dataclasses.fields(kind)}
    others = {*sections, "fsdp", "model", "task_options", "values"}  # these collect other keys
    fields |= {field.name for field in dataclasses.fields(RunConfig)} - others
    assert fields | {"mesh.fsdp", "model.name"} == KEYS.keys()


def test_unknown_task_suggests_the_nearest():
    with pytest.raises(TaskError, match=r"'clasification' is not a known task; did you mean 'classification'?"):
        tiny.config(task="clasification")


def test_plugin_that_is_not_there_is_one_sentence():
    with pytest.raises(PluginError, match=r"'no_such_package\.tasks' cannot be imported"):
        tiny.config(plugins=("no_such_package.tasks",))


class Incomplete(Task):
    name = "incomplete"
    metrics = ()

    def open_source(self, split):
        pass


class Shadowing(Classification):
    name = "shadowing"
    keys = MappingProxyType({**Classification.keys, "batch_size": ConfigKey(int, "1..", 1, "another")})


@pytest.mark.parametrize(
    ("task", "error", "words"),
    [
        (Incomplete, TaskError, r"task Incomplete of tests\.train\.test_config lacks baseline_score, .*loss_terms, .*"),
        (object, TaskError, "has <class 'object'> in TASKS; expected a subclass"),
        ("spots", TaskError, "has 'spots' in TASKS; expected a subclass"),
        (Shadowing, RunError, "task 'shadowing' redefines keys of every config: batch_size"),
    ],
)
def test_a_task_that_is_not_complete_is_refused_by_what_it_lacks(monkeypatch, task, error, words):
    monkeypatch.setattr(registry, "BUILT_IN", (Classification, task))
    with pytest.raises(error, match=words):
        tiny.config(task=getattr(task, "name", "spots"))


def test_the_number_of_classes_is_not_set_by_a_config():
    with pytest.raises(RunError, match=r"config\.model\.num_classes cannot be set"):
        tiny.config(**{"model.num_classes": 10})


def test_only_what_changes_a_step_counts_as_a_change():
    config = tiny.config()
    assert changed_keys(tiny.config(**{"data.num_workers": 2, "log_every_steps": 7, "resume": "any"}), config) == []
    assert changed_keys(tiny.config(seed=1), config) == ["config.seed was 0, is 1"]
    assert changed_keys(tiny.config(**{"model.dims": (8, 24)}), config) == ["config.model.dims was (8, 16), is (8, 24)"]
    assert changed_keys(tiny.config(**{"model.act_layer": "gelu", "model.img_size": (32, 32)}), config) == []
