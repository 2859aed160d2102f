"""Models by name, as plain functions of nested dicts."""

from mambaout_jax.models.api import FeatureInfo, Functional, InputSpec, Model, cpu_compiler_options
from mambaout_jax.models.errors import ModelError
from mambaout_jax.models.layers.mamba_block import BlockState, MambaBlock
from mambaout_jax.models.mambaout.model import MambaOut
from mambaout_jax.models.registry import VARIANTS, create_model, list_models
from mambaout_jax.models.vit.model import VisionTransformer

__all__ = [
    "VARIANTS",
    "BlockState",
    "FeatureInfo",
    "Functional",
    "InputSpec",
    "MambaBlock",
    "MambaOut",
    "Model",
    "ModelError",
    "VisionTransformer",
    "cpu_compiler_options",
    "create_model",
    "list_models",
]
