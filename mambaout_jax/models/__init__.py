"""Networks by name, as plain functions of nested dicts."""

from mambaout_jax.models.api import FeatureInfo, InputSpec, Model, inference_options
from mambaout_jax.models.errors import ModelError
from mambaout_jax.models.layers.mamba_block import BlockState, MambaBlock
from mambaout_jax.models.mambaout.model import MambaOut
from mambaout_jax.models.registry import VARIANTS, create_model, list_models
from mambaout_jax.models.vit.model import VisionTransformer

__all__ = [
    "VARIANTS",
    "BlockState",
    "FeatureInfo",
    "InputSpec",
    "MambaBlock",
    "MambaOut",
    "Model",
    "ModelError",
    "VisionTransformer",
    "create_model",
    "inference_options",
    "list_models",
]
