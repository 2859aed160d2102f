"""Stochastic depth and dropout; without a key, both are the identity."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def drop_path(
    x: Float[Array, "b *map d"], rate: float | Float[Array, ""], key: Key[Array, ""] | None
) -> Float[Array, "b *map d"]:
    """Zero the branch of each sample with probability `rate` and divide the others by 1 - rate.

    Return x unchanged without a key or if `rate` is the Python number 0.

    Reference: Huang et al., Deep Networks with Stochastic Depth, 2016.
    """
    scale = drop_path_scale(x, rate, key)
    return x if scale is None else x * scale.astype(x.dtype).reshape((-1,) + (1,) * (x.ndim - 1))


def drop_path_scale(
    x: Float[Array, "b *map d"], rate: float | Float[Array, ""], key: Key[Array, ""] | None
) -> Float[Array, " b"] | None:
    """Return the factors by which `drop_path` multiplies the branches of x; None if it changes nothing."""
    if key is None or (isinstance(rate, float) and rate == 0.0):
        return None
    # In float32, so that unrolled blocks, whose rate is a Python number, and scanned ones, with an array, draw the
    # same.
    keep_rate = 1.0 - jnp.float32(rate)
    return jax.random.bernoulli(key, keep_rate, x.shape[:1]) / keep_rate


def dropout(x: Float[Array, "*batch d"], rate: float, key: Key[Array, ""] | None) -> Float[Array, "*batch d"]:
    """Zero each element with probability `rate` and divide the others by 1 - rate."""
    return _drop(x, rate, key, x.shape)


def channel_dropout(x: Float[Array, "b h w d"], rate: float, key: Key[Array, ""] | None) -> Float[Array, "b h w d"]:
    """Zero each channel of each map with probability `rate` and divide the others by 1 - rate."""
    return _drop(x, rate, key, (x.shape[0], 1, 1, x.shape[3]))


def _drop(x, rate, key, shape):
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, shape)
    return x * (keep / (1.0 - rate)).astype(x.dtype)
