"""Broadcasting along the last axis, which must be explicit where JAX refuses to promote ranks."""

from jaxtyping import Array, Float


def per_channel(vector: Float[Array, " d"], x: Float[Array, "*batch d"]) -> Float[Array, "... d"]:
    """Return a vector with the rank and dtype of x, for broadcasting along the last axis."""
    return vector.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
