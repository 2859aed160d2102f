"""The recipe that MambaOut was published with, and what a run departs from it in."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

DATASET = "imagenet2012"

# What a run says in words if it has it otherwise; configs/mambaout_*.py hold the whole recipe.
# Reference: Yu and Wang, MambaOut: Do We Really Need Mamba for Vision?, 2024: its five training scripts, 8 devices of
# 128 images in 4 parts, each of which draws one mixup or cutmix.
PUBLISHED: Mapping[str, Any] = MappingProxyType(
    {
        "batch_size": 4096,
        "optim.learning_rate": 4e-3,
        "optim.warmup_epochs": 20,
        "num_epochs": 310,
        "optim.cooldown_epochs": 10,
        "augment.mixup_group": 128,
    }
)


def linear_rule(batch_size: int) -> float:
    """Compute the learning rate that keeps the recipe's ratio to the batch: 4e-3 * batch_size / 4096.

    Reference: Goyal et al., Accurate, Large Minibatch SGD, 2017.
    """
    return PUBLISHED["optim.learning_rate"] * batch_size / PUBLISHED["batch_size"]


def departures(values: Mapping[str, Any]) -> list[str]:
    """Say in what a run on ImageNet-1k that starts from nothing departs from the recipe, a sentence each.

    Args:
        values: of a config, by dotted keys.

    Returns:
        Nothing for another dataset or a run that starts from given weights: the recipe does not speak of them.
    """
    if re.split("[:/]", values["data.name"])[0] != DATASET or values["init_from"] is not None:
        return []
    departing = {name: expected for name, expected in PUBLISHED.items() if values[name] != expected}
    if "batch_size" in departing:
        departing.pop("optim.learning_rate", None)  # the sentence on the batch weighs it
    rate, ruled = values["optim.learning_rate"], linear_rule(values["batch_size"])
    held = "as the config has it" if abs(rate - ruled) <= 1e-6 * ruled else f"the config has {rate}"
    rule = f"the linear rule gives config.optim.learning_rate {ruled:g}, {held}"
    groups = values["batch_size"] // values["augment.mixup_group"]
    because = {
        "batch_size": f"; {rule}",
        "optim.learning_rate": f"; {rule}",
        "augment.mixup_group": f"; a step draws {groups} times how to mix, the recipe's 32 times",
    }
    return [
        f"config.{name} is {values[name]}, the recipe's is {expected}{because.get(name, '')}"
        for name, expected in departing.items()
    ]
