"""Differences of a config from the published recipe of its model family."""

import re
from collections.abc import Mapping
from typing import Any

from mambaout_jax.models import Recipe
from mambaout_jax.words import count


def linearly_scaled_lr(recipe: Recipe, batch_size: int) -> float:
    """Compute the learning rate for a batch size by the linear scaling rule, from that of the recipe.

    Reference: Goyal et al., Accurate, Large Minibatch SGD, 2017.
    """
    return recipe.values["optim.learning_rate"] * batch_size / recipe.values["batch_size"]


def differences_from_recipe(recipe: Recipe | None, values: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each difference of a config from a recipe.

    Args:
        recipe: the recipe of the model; None if there is none.
        values: the values of the config and the options of its model, by dotted key.

    Returns:
        An empty list for another dataset or a run that starts from pretrained weights, because the recipe covers
        neither.
    """
    if recipe is None or not recipe.values.keys() <= values.keys():  # a task without these keys
        return []
    if re.split("[:/]", values["data.name"])[0] != recipe.dataset or values["init_from"] is not None:
        return []
    differing = {name: expected for name, expected in recipe.values.items() if values[name] != expected}
    if "batch_size" in differing and _scales_linearly(values):
        differing.pop("optim.learning_rate", None)  # mentioned in the sentence about the batch size
    return [
        f"config.{name} is {values[name]}, the recipe's is {expected}{_explain(name, recipe, values)}"
        for name, expected in differing.items()
    ]


def _explain(name: str, recipe: Recipe, values: Mapping[str, Any]) -> str:
    """Return a remark on the effect of a different value, for keys that need one."""
    if name in ("batch_size", "optim.learning_rate") and _scales_linearly(values):
        rate, ruled = values["optim.learning_rate"], linearly_scaled_lr(recipe, values["batch_size"])
        given = "as in the config" if abs(rate - ruled) <= 1e-6 * ruled else f"the config has {rate}"
        return f"; the linear scaling rule gives config.optim.learning_rate {ruled:g}, {given}"
    if name == "augment.mixup_group":
        draws, published = (of["batch_size"] // of[name] for of in (values, recipe.values))
        return f"; a step draws mixup or cutmix {count(draws, 'time')}, in the recipe {count(published, 'time')}"
    return ""


def _scales_linearly(values: Mapping[str, Any]) -> bool:
    """Return whether the learning rate follows the linear scaling rule; that of LAMB follows another one."""
    return values["optim.name"] == "adamw"
