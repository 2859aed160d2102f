"""Results that are stored for the backward pass when most others are recomputed."""

from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

SAVEABLE = "saveable"


def saveable(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Mark a result to be stored for the backward pass under `remat="save_matmuls"`; all others are recomputed."""
    return checkpoint_name(x, SAVEABLE)
