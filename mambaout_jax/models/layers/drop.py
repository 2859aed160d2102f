"""Stochastic depth and dropout; both do nothing without a key."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def drop_path(
    x: Float[Array, "b *map d"], rate: float | Float[Array, ""], key: Key[Array, ""] | None
) -> Float[Array, "b *map d"]:
    """Zero the branch of a sample with probability `rate` and divide the others by 1 - rate.

    Without a key, or with the number 0 as the rate, nothing is computed.

    Reference: Huang et al., Deep Networks with Stochastic Depth, 2016.
    """
    if key is None or (isinstance(rate, float) and rate == 0.0):
        return x
    # In float32, because the rate is a number in a plain block and an array in a scanned one: both draw the same.
    keep_rate = 1.0 - jnp.float32(rate)
    keep = jax.random.bernoulli(key, keep_rate, (x.shape[0],) + (1,) * (x.ndim - 1))
    return x * (keep / keep_rate).astype(x.dtype)


def dropout(x: Float[Array, "*batch d"], rate: float, key: Key[Array, ""] | None) -> Float[Array, "*batch d"]:
    """Zero elements with probability `rate` and divide the others by 1 - rate."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return x * (keep / (1.0 - rate)).astype(x.dtype)
