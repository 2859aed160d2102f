"""How a run departs from the recipe that its family was published with."""

import re
from collections.abc import Mapping
from typing import Any

from mambaout_jax.models import Recipe


def linear_rule(recipe: Recipe, batch_size: int) -> float:
    """Compute the learning rate that keeps the recipe's ratio to the batch size.

    Reference: Goyal et al., Accurate, Large Minibatch SGD, 2017.
    """
    return recipe.values["optim.learning_rate"] * batch_size / recipe.values["batch_size"]


def departures(recipe: Recipe | None, values: Mapping[str, Any]) -> list[str]:
    """Describe how a run departs from a recipe, a sentence for each value.

    Args:
        recipe: of the model's family; None if there is none.
        values: of the config, by dotted keys.

    Returns:
        Nothing for another dataset or a run that starts from given weights, which the recipe does not cover.
    """
    if recipe is None or not recipe.values.keys() <= values.keys():  # a task without these keys
        return []
    if re.split("[:/]", values["data.name"])[0] != recipe.dataset or values["init_from"] is not None:
        return []
    departing = {name: expected for name, expected in recipe.values.items() if values[name] != expected}
    if "batch_size" in departing:
        departing.pop("optim.learning_rate", None)  # the sentence on the batch covers it
    return [
        f"config.{name} is {values[name]}, the recipe's is {expected}{_explain(name, recipe, values)}"
        for name, expected in departing.items()
    ]


def _explain(name: str, recipe: Recipe, values: Mapping[str, Any]) -> str:
    """Describe what follows from another value, for the values where that is more than the value itself."""
    if name in ("batch_size", "optim.learning_rate"):
        rate, ruled = values["optim.learning_rate"], linear_rule(recipe, values["batch_size"])
        given = "as the config has it" if abs(rate - ruled) <= 1e-6 * ruled else f"the config has {rate}"
        return f"; the linear rule gives config.optim.learning_rate {ruled:g}, {given}"
    if name == "augment.mixup_group":
        draws, published = (of["batch_size"] // of[name] for of in (values, recipe.values))
        return f"; a step draws mixup or cutmix {draws} times, the recipe's {published} times"
    return ""
