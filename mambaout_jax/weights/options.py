"""Comparison of the options of models."""

from collections.abc import Mapping
from typing import Any

from mambaout_jax.models import Model, variant_options

# Options that change neither the parameters nor the logits at inference.
TRAINING_OPTIONS = ("drop_path_rate", "drop_rate", "dtype", "scan_blocks", "remat")


def other_options(options: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    """Return the options that differ between two models, except those of training and the number of classes."""
    return [
        key
        for key in sorted(options.keys() | others.keys())
        if key not in (*TRAINING_OPTIONS, "num_classes") and not _same(key, options.get(key), others.get(key))
    ]


def model_args(model: Model) -> dict[str, Any]:
    """Return the options that differ from the variant's, except num_classes, for timm's `create_model`."""
    return {key: model.options[key] for key in other_options(model.options, variant_options(model.name))}


def _same(key: str, value: Any, other: Any) -> bool:
    if key == "ls_init_value":  # its value matters only for training
        return (value is None) == (other is None)
    return (tuple(value) if isinstance(value, list) else value) == (tuple(other) if isinstance(other, list) else other)
