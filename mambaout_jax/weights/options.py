"""Options of a model: which of them its weights depend on, and which differ from its variant's own."""

import functools
from collections.abc import Mapping
from typing import Any

from mambaout_jax.models import Model, create_model

# Options that leave no trace in the parameters and do not change logits.
OF_TRAINING = ("drop_path_rate", "drop_rate", "dtype", "scan_blocks", "remat")


def other_options(options: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    """List the options by which two models are different networks, the number of classes aside."""
    return [
        key
        for key in sorted(options.keys() | others.keys())
        if key not in (*OF_TRAINING, "num_classes") and not same(key, options.get(key), others.get(key))
    ]


def model_args(model: Model) -> dict[str, Any]:
    """Give what shapes a model beyond its variant's name, the classes aside, as timm's `create_model` takes it."""
    return {key: model.options[key] for key in other_options(model.options, own_options(model.name))}


@functools.cache
def own_options(name: str) -> Mapping[str, Any]:
    """Give every option of a variant with its value."""
    return create_model(name).options


def same(key: str, value: Any, other: Any) -> bool:
    """Tell whether two values of an option make the same network."""
    if key == "ls_init_value":  # a training value but for whether there is one
        return (value is None) == (other is None)
    return (tuple(value) if isinstance(value, list) else value) == (tuple(other) if isinstance(other, list) else other)
