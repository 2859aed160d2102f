"""MambaOut and the systems it is compared with, in JAX."""

from mambaout_jax.models import Model, create_model, list_models

__all__ = ["Model", "create_model", "list_models"]
