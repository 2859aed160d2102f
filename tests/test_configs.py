"""Every experiment is complete, and those of the published recipe have its numbers."""

import ast
import re
import runpy
from pathlib import Path

import pytest

import mambaout_jax as mo
from mambaout_jax.models import find_family
from mambaout_jax.run.config import flatten_config, parse_config
from mambaout_jax.run.errors import RunError
from mambaout_jax.train.recipe import departures

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.py"))
# What an experiment leaves to the command line.
GIVEN = {"finetune": {"init_from": "runs/femto", "data.name": "photos"}}

DROP_PATH = {
    "mambaout_femto": 0.025,
    "mambaout_kobe": 0.025,
    "mambaout_tiny": 0.2,
    "mambaout_small": 0.4,
    "mambaout_base": 0.6,
}
RECIPE = {
    "seed": 42,
    "init_from": None,
    "num_epochs": 310,
    "batch_size": 4096,
    "microbatch_size": 128,
    "eval_every_epochs": 1,
    "data.name": "imagenet2012",
    "data.train_split": "train",
    "data.validation_split": "validation",
    "data.pipeline": "exact",
    "data.crop": "random_resized",
    "data.crop_scale": (0.08, 1.0),
    "data.crop_ratio": (0.75, 4 / 3),
    "data.hflip_prob": 0.5,
    "data.interpolation": "random",
    "data.auto_augment": "rand-m9-mstd0.5-inc1",
    "data.crop_pct": 1.0,
    "data.on_bad_record": "raise",
    "model.img_size": 224,
    "model.drop_rate": 0.0,
    "model.dtype": "float32",
    "augment.pad": 0,
    "augment.rotate_degrees": 0.0,
    "augment.mixup_alpha": 0.8,
    "augment.cutmix_alpha": 1.0,
    "augment.mixup_prob": 1.0,
    "augment.mixup_switch_prob": 0.5,
    "augment.mixup_group": 128,
    "augment.random_erasing_prob": 0.25,
    "augment.label_smoothing": 0.1,
    "optim.learning_rate": 0.004,
    "optim.warmup_learning_rate": 0.000001,
    "optim.min_learning_rate": 0.00001,
    "optim.warmup_epochs": 20,
    "optim.cooldown_epochs": 10,
    "optim.schedule": "per_epoch",
    "optim.weight_decay": 0.05,
    "optim.b1": 0.9,
    "optim.b2": 0.999,
    "optim.eps": 1e-8,
    "optim.clip_grad_norm": None,
    "optim.ema_decay": None,
}


def load(name, **changes):
    config = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]()
    config.update_from_flattened_dict({**GIVEN.get(name, {}), **changes})
    return config


@pytest.mark.parametrize("name", NAMES)
def test_every_config_is_whole_and_builds_its_model(name):
    task = parse_config(load(name)).build_task()
    assert task.build_model({"num_classes": 10}).num_classes == 10


@pytest.mark.parametrize("name", NAMES)
def test_every_config_tells_how_to_run_it_and_what_it_costs(name):
    text = ast.get_docstring(ast.parse((CONFIGS / f"{name}.py").read_text()))
    assert f"python main.py --config=configs/{name}.py --workdir=" in text
    assert "Cost" in text
    for word in text.replace("`", " ").split():
        key, given, _ = word.removeprefix("--config.").partition("=")
        if word.startswith("--config.") and given:
            assert key in flatten_config(load(name)), word


@pytest.mark.parametrize("name", DROP_PATH)
def test_published_experiments_hold_the_recipe(name):
    values = flatten_config(load(name))
    expected = {**RECIPE, "model.name": name, "model.drop_path_rate": DROP_PATH[name]}
    assert {key: values[key] for key in expected} == expected
    assert departures(find_family(name).recipe, values) == []


def test_published_experiments_differ_in_model_and_drop_path_alone():
    first, *others = (flatten_config(load(name)) for name in DROP_PATH)
    for other in others:
        assert {key for key in first | other if first[key] != other[key]} <= {"model.name", "model.drop_path_rate"}


@pytest.mark.parametrize("name", DROP_PATH)
def test_published_experiments_take_312_steps_an_epoch(name):
    config = load(name)
    assert 1_281_167 // config.batch_size == 312
    assert 312 % config.log_every_steps == 0
    assert mo.create_model(config.model.name).input_spec.size == (224, 224)


def test_fine_tuning_needs_a_dataset():
    with pytest.raises(RunError, match=r"config.data.name is unset"):
        parse_config(load("finetune", **{"data.name": None}))


def test_fine_tuning_needs_weights():
    with pytest.raises(RunError, match=r"config.init_head is 'new'.*config.init_from"):
        parse_config(load("finetune", init_from=None))


def test_the_page_on_the_recipe_gives_the_numbers_of_the_configs():
    values, text = flatten_config(load("mambaout_tiny")), (ROOT / "docs" / "recipe.md").read_text()
    rows = re.findall(r"^\|[^|]*\| `(.+)` \| `(.+)` \|$", text, re.MULTILINE)
    assert len(rows) > 30
    for value, key in rows:
        assert values[key] == eval(value, {}), key
    for name, rate in DROP_PATH.items():
        assert f"| MambaOut-{name.removeprefix('mambaout_').title()} | {rate} |" in text
