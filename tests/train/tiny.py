"""The digits experiment, small enough to run whole in a test."""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from mambaout_jax.models import option_keys
from mambaout_jax.run.config import RunConfig, parse_config

DIGITS = Path(__file__).parents[2] / "configs" / "digits.py"

OVERRIDES = {
    "num_epochs": 2,
    "batch_size": 256,
    "eval_batch_size": 100,
    "eval_every_epochs": 1,
    "log_every_steps": 2,
    "model.depths": (1, 1),
    "model.dims": (8, 16),
    "model.drop_path_rate": 0.1,
    "optim.warmup_epochs": 1,
}
STEPS_PER_EPOCH = 5  # of 256 of the 1,437 images


def config(**changes) -> RunConfig:
    """Build the experiment; changes are dotted keys."""
    return parse_config(config_dict(**changes))


def config_dict(**changes) -> ConfigDict:
    """Build what a config file returns; changes are dotted keys. A model of another family keeps the options it has."""
    config = runpy.run_path(str(DIGITS))["get_config"]()
    known = option_keys(changes.get("model.name", config.model.name))
    overrides = {
        name: value
        for name, value in OVERRIDES.items()
        if not name.startswith("model.") or name.removeprefix("model.") in known
    }
    with config.unlocked():
        for option in [option for option in config.model if option != "name" and option not in known]:
            del config.model[option]
        for name, value in {**overrides, **changes}.items():
            section, _, key = name.rpartition(".")
            (config[section] if section else config)[key] = value
    return config


def flags(**changes) -> list[str]:
    """Return the same as arguments of main.py."""
    changed = {**OVERRIDES, **changes}
    return [f"--config={DIGITS}", *(f"--config.{key}={value}" for key, value in changed.items())]
