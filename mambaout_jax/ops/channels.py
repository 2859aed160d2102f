"""Broadcasting along the last axis, which must be explicit where JAX refuses to promote ranks."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float


def per_channel(vector: Any, x: Float[Array, "..."]) -> Float[Array, "... d"]:
    """Return an array of d numbers with the rank and dtype of x, to broadcast it along all axes of x but the last."""
    return jnp.asarray(vector, x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
