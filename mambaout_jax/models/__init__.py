"""Vision models by name, as plain functions of nested dicts."""

from mambaout_jax.models.api import FeatureInfo, Functional, InputSpec, Model, ScanInfo, cpu_compiler_options
from mambaout_jax.models.errors import ModelError
from mambaout_jax.models.family import Checkpoint, Family, Publication, Recipe, Variant
from mambaout_jax.models.layers.mamba_block import BlockState, MambaBlock
from mambaout_jax.models.nnx_module import NNXModel
from mambaout_jax.models.registry import (
    backbone_of,
    create_model,
    dense_families,
    families,
    families_with,
    find_family,
    list_models,
    option_keys,
    split_name,
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
    "NNXModel",
    "Publication",
    "Recipe",
    "ScanInfo",
    "Variant",
    "backbone_of",
    "cpu_compiler_options",
    "create_model",
    "dense_families",
    "families",
    "families_with",
    "find_family",
    "list_models",
    "option_keys",
    "split_name",
    "variant_options",
]
