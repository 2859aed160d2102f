"""Comparison of the options of models."""

from collections.abc import Mapping
from typing import Any

from mambaout_jax.checks import ConfigKey
from mambaout_jax.models import Family, Model, variant_options


def other_options(family: Family, options: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    """Return the options that differ between two models of a family, except in what only affects training.

    The number of classes is not compared.
    """
    return [
        name
        for name, key in sorted(family.options.items())
        if name != "num_classes" and _differs(key, options.get(name), others.get(name))
    ]


def model_args(model: Model) -> dict[str, Any]:
    """Return the options that differ from the variant's, except num_classes, for timm's `create_model`."""
    names = other_options(model.family, model.options, variant_options(model.name))
    return {name: model.options[name] for name in names}


def _differs(key: ConfigKey, value: Any, other: Any) -> bool:
    if key.inference == "value":
        first, second = (tuple(each) if isinstance(each, list) else each for each in (value, other))
        return first != second
    return key.inference == "presence" and (value is None) != (other is None)
