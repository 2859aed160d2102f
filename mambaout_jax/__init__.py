"""MambaOut and the systems it is compared with, in JAX."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mambaout_jax.models import Model, create_model, list_models
    from mambaout_jax.weights import from_torch, load_pretrained, to_torch

_ROOMS = {
    **dict.fromkeys(("Model", "create_model", "list_models"), "models"),
    **dict.fromkeys(("from_torch", "load_pretrained", "to_torch"), "weights"),
}
__all__ = ["Model", "create_model", "from_torch", "list_models", "load_pretrained", "to_torch"]


def __getattr__(name: str) -> Any:
    # Loaded at the first use: the processes that only decode images need neither flax nor the models.
    if name in _ROOMS:
        return getattr(importlib.import_module(f"mambaout_jax.{_ROOMS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
