"""MambaOut and the systems it is compared with, in JAX."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mambaout_jax.models import Model, create_model, list_models

__all__ = ["Model", "create_model", "list_models"]


def __getattr__(name: str) -> Any:
    # Loaded at the first use: the processes that only decode images need neither flax nor the models.
    if name in __all__:
        return getattr(importlib.import_module("mambaout_jax.models"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
