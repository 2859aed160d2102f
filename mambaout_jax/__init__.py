"""MambaOut and other vision backbones, in JAX."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mambaout_jax.models import Model, create_model, list_models
    from mambaout_jax.run.workdir import load_run
    from mambaout_jax.tasks.classification.inference import predict, preprocess
    from mambaout_jax.weights import from_torch, load_pretrained, to_torch

    __version__: str

_MODULES = {
    **dict.fromkeys(("Model", "create_model", "list_models"), "models"),
    **dict.fromkeys(("from_torch", "load_pretrained", "to_torch"), "weights"),
    "load_run": "run.workdir",
    **dict.fromkeys(("predict", "preprocess"), "tasks.classification.inference"),
}
# As attributes without an import of their own: mo.ops.selective_scan.
_PACKAGES = ("checks", "data", "errors", "models", "ops", "plugins", "run", "tasks", "train", "weights")
__all__ = [
    "Model",
    "create_model",
    "from_torch",
    "list_models",
    "load_pretrained",
    "load_run",
    "predict",
    "preprocess",
    "to_torch",
]


def __getattr__(name: str) -> Any:
    # Imported on first use: processes that only decode images need neither flax nor the models.
    if name in _MODULES:
        return getattr(importlib.import_module(f"mambaout_jax.{_MODULES[name]}"), name)
    if name in _PACKAGES:
        return importlib.import_module(f"mambaout_jax.{name}")
    if name == "__version__":
        return importlib.import_module("mambaout_jax.version").find_version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
