"""The recipe that MambaOut was published with: what a run departs in, and how its batch is spread over devices."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from mambaout_jax.train.errors import RunError

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


def accumulation_steps(batch_size: int, num_devices: int, device_batch_size: int | None, mixup_group: int) -> int:
    """Find the least number of equal parts of a batch that no device computes too many images at once of.

    Args:
        batch_size: images of a step, over all devices.
        device_batch_size: most images that a device computes at once; None for any number.
        mixup_group: images that mix among themselves; 1 where nothing is mixed.

    Raises:
        RunError: the batch is not a multiple of the devices, or a device's share of it not one of `mixup_group`.
    """
    share, rest = divmod(batch_size, num_devices)
    unit = num_devices * mixup_group
    below = batch_size // unit * unit
    near = " or ".join(str(size) for size in (below, below + unit) if size)
    if rest:
        groups = f" in groups of config.augment.mixup_group {mixup_group}" if mixup_group > 1 else ""
        raise RunError(
            f"config.batch_size is {batch_size}; equal shares for {num_devices} devices{groups} are expected: "
            f"the nearest size is {near}"
        )
    if share % mixup_group:
        fits = max(group for group in range(1, mixup_group) if share % group == 0)
        raise RunError(
            f"config.augment.mixup_group is {mixup_group}; a divisor of the {share} images of a device is expected, so "
            f"that mixing stays on it: set it to {fits}, or config.batch_size to {near}"
        )
    limit = device_batch_size or share
    return next(parts for parts in range(1, share + 1) if share % parts == 0 and share // parts <= limit)


def describe_batch(batch_size: int, num_devices: int, parts: int) -> str:
    """Say how a batch of a step is spread over devices, and over the parts that are computed one after another."""
    share = batch_size // num_devices
    where = f"{share:,} on each of {num_devices:,} devices" if num_devices > 1 else "on one device"
    how = f"accumulated over {parts:,} parts of {share // parts:,}" if parts > 1 else "computed at once"
    return f"a step takes {batch_size:,} images, {where}, {how}"
