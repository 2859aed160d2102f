import json
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from mambaout_jax.checks import Key
from mambaout_jax.plugins import PluginError
from mambaout_jax.run.config import KEYS, changed_keys, from_json, nest, parse_config, read_config
from mambaout_jax.run.errors import RunError
from mambaout_jax.tasks import registry
from mambaout_jax.tasks.api import Task
from mambaout_jax.tasks.classification.task import Classification
from mambaout_jax.tasks.errors import TaskError
from mambaout_jax.tasks.registry import get_task
from tests.marks import slow_but
from tests.train import tiny

ROOT = Path(__file__).parents[2]


def test_config_survives_json():
    config = tiny.config()
    assert from_json(config.to_json()) == config
    assert parse_config(nest(config.values)) == config


@pytest.mark.parametrize(("recorded", "remat"), [(False, "none"), (True, "full"), ("cheap", "save_matmuls")])
def test_a_run_of_before_keys_had_their_names_goes_on(recorded, remat):
    older = json.loads(tiny.config().to_json())
    older["model"]["remat"] = recorded
    older["data"]["bad_records"] = {"raise": "stop"}[older["data"].pop("on_bad_record")]
    older["data"]["flip_rate"] = older["data"].pop("hflip_prob")
    older["device_batch_size"] = older.pop("microbatch_size")
    for former, name in (
        ("mix_rate", "mixup_prob"),
        ("switch_rate", "mixup_switch_prob"),
        ("erase_rate", "random_erasing_prob"),
    ):
        older["augment"][former] = older["augment"].pop(name)
    for section, key in (("model", "scan_blocks"), (None, "task"), (None, "plugins"), (None, "mesh")):
        del (older[section] if section else older)[key]
    config = from_json(json.dumps(older))
    assert config.model["remat"] == remat
    assert config.build_task().build_model({"num_classes": 10}).options["remat"] == remat
    assert changed_keys(tiny.config(**{"model.scan_blocks": True}), config) == []


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("batch_size", -1, "config.batch_size is -1; an integer of 1 or more"),
        ("batch_size", 2.5, "config.batch_size is 2.5; an integer"),
        ("batch_size", True, "config.batch_size is True"),
        ("seed", None, "config.seed is unset"),
        ("model.ls_init_value", np.float32(1e-5), r"config.model.ls_init_value is .*, a float32; a number"),
        ("optim.b2", 1.0, "config.optim.b2 is 1.0; a number of 0 up to, not including, 1"),
        ("data.crop_scale", (True, True), "config.data.crop_scale"),
        ("num_epochs", 0, "config.num_epochs is 0"),
        ("data.hflip_prob", 1.5, "config.data.hflip_prob is 1.5; a number of 0 to 1"),
        ("data.crop", "centre", "config.data.crop is 'centre'; 'resize' or 'random_resized'"),
        ("data.crop_scale", (0.5, 0.1), "config.data.crop_scale"),
        ("data.crop_scale", (0.5,), "config.data.crop_scale"),
        ("data.crop_scale", ("a", "b"), "config.data.crop_scale"),
        ("data.crop_ratio", (1.0, float("inf")), "config.data.crop_ratio"),
        ("data.crop_pct", 1e-7, "config.data.crop_pct is 1e-07; a number of 0.1 to 1"),
        ("optim.learning_rate", float("nan"), "config.optim.learning_rate is nan"),
        ("optim.warmup_epochs", 50, "config.optim.warmup_epochs 50"),
        ("microbatch_size", 0, "config.microbatch_size is 0; an integer of 1 or more"),
        ("data.pipeline", "slow", "config.data.pipeline is 'slow'; 'exact' or 'fast'"),
        ("data.crop_mode", "centre", "config.data.crop_mode is 'centre'"),
    ],
)
def test_value_that_does_not_fit_is_named(key, value, words):
    with pytest.raises(RunError, match=words):
        tiny.config(**{key: value})


def test_integer_serves_as_number():
    assert tiny.config(**{"optim.learning_rate": 1}).optim.learning_rate == 1


def test_unknown_key_suggests_the_nearest():
    config = tiny.config_dict()
    config.optim.learningrate = 0.1
    with pytest.raises(RunError, match=r"config.optim.learningrate.*did you mean config.optim.learning_rate"):
        parse_config(config)


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
    keys = MappingProxyType({**Classification.keys, "batch_size": Key(int, "1..", "another")})


@pytest.mark.parametrize(
    ("task", "error", "words"),
    [
        (Incomplete, TaskError, r"task Incomplete of tests\.train\.test_config lacks baseline_score, .*loss_terms, .*"),
        (object, TaskError, "has <class 'object'> in TASKS; a subclass"),
        ("spots", TaskError, "has 'spots' in TASKS; a subclass"),
        (Shadowing, RunError, "task 'shadowing' has keys of its own that every config has: batch_size"),
    ],
)
def test_a_task_that_is_not_complete_is_refused_by_what_it_lacks(monkeypatch, task, error, words):
    monkeypatch.setattr(registry, "BUILT_IN", (Classification, task))
    with pytest.raises(error, match=words):
        tiny.config(task=getattr(task, "name", "spots"))


def test_the_number_of_classes_is_not_set_by_a_config():
    with pytest.raises(RunError, match=r"config\.model\.num_classes cannot be set"):
        tiny.config(**{"model.num_classes": 10})


def test_missing_keys_are_all_listed():
    config = tiny.config_dict()
    del config.optim["b1"], config["seed"]
    with pytest.raises(RunError, match=r"config.seed, config.optim.b1"):
        parse_config(config)


def test_only_what_changes_a_step_counts_as_a_change():
    config = tiny.config()
    assert changed_keys(tiny.config(**{"data.num_workers": 2, "log_every_steps": 7, "resume": "any"}), config) == []
    assert changed_keys(tiny.config(seed=1), config) == ["config.seed was 0, is 1"]
    assert changed_keys(tiny.config(**{"model.dims": (8, 24)}), config) == ["config.model.dims was (8, 16), is (8, 24)"]


def test_documentation_has_every_key():
    text = (ROOT / "docs" / "config.md").read_text()
    for name, key in {**KEYS, **get_task("classification").keys}.items():
        assert f"`{name}`" in text, name
        assert key.about in text, name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.optm.learning_rate=1"], "no key optm; did you mean optim?"),
        pytest.param(
            ["--config.optim.learningrate=1"],
            "did you mean learning_rate?",
            marks=pytest.mark.slow,
        ),
        pytest.param(["--config.batch_size=many"], "batch_size", marks=pytest.mark.slow),
        pytest.param(["--confg.seed=1"], "confg", marks=pytest.mark.slow),
        pytest.param(["--config.model.scan_blocks=2"], "True or False is expected, not '2'", marks=pytest.mark.slow),
        (["extra"], "extra"),
    ],
)
def test_mistyped_flag_is_one_sentence(arguments, words, tmp_path):
    command = [sys.executable, "main.py", "--config=configs/digits.py", f"--workdir={tmp_path / 'run'}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_a_config_file_that_fails_is_reported_by_its_last_line(tmp_path):
    (tmp_path / "broken.py").write_text("def get_config():\n    raise ValueError('no')\n")
    with pytest.raises(RunError, match=r"^--config cannot be run: ValueError: no$"):
        read_config(str(tmp_path / "broken.py"))


@pytest.mark.parametrize("arguments", slow_but([[]], [["--config=configs/nothing.py"], ["--config=README.md"], []]))
def test_missing_config_is_one_sentence(arguments, tmp_path):
    command = [sys.executable, "main.py", f"--workdir={tmp_path / 'run'}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")
