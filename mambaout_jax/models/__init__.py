"""Vision models by name, as plain functions of nested dicts."""

from mambaout_jax.models.api import FeatureInfo, Functional, InputSpec, Model, cpu_compiler_options
from mambaout_jax.models.errors import ModelError
from mambaout_jax.models.family import Checkpoint, Family, Publication, Recipe, Variant
from mambaout_jax.models.layers.mamba_block import BlockState, MambaBlock
from mambaout_jax.models.registry import (
    create_model,
    families,
    find_family,
    find_recipe,
    list_models,
    option_keys,
    variant_options,
)

__all__ = [
    "BlockState",
    "Checkpoint",
    "Family",
    "FeatureInfo",
    "Functional",
    "InputSpec",
    "MambaBlock",
    "Model",
    "ModelError",
    "Publication",
    "Recipe",
    "Variant",
    "cpu_compiler_options",
    "create_model",
    "families",
    "find_family",
    "find_recipe",
    "list_models",
    "option_keys",
    "variant_options",
]
