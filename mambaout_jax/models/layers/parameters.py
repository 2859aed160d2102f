"""Parameters of layers and their initial values.

A layer declares the shapes and initializers of its parameters without allocating them; `init_state` initializes all
parameters of a model at once. Parameters are float32; the `dtype` of a layer is that of its matrix products and
convolutions.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

# Maps standard normal noise of the parameter's shape to initial values. The noise of all parameters is drawn at once:
# one draw per parameter would add half a second of compilation each.
Initializer = Callable[[Float[Array, "..."]], Float[Array, "..."]]


def normal(noise: Float[Array, "..."]) -> Float[Array, "..."]:
    """Scale to N(0, 0.02^2).

    The reference uses `trunc_normal_(std=.02)`, which truncates at +-2, a hundred standard deviations: in effect a
    plain normal distribution.
    """
    return 0.02 * noise


# Cached, because flax compares the initializers of layers by identity: those of identical layers must be one object.
@functools.cache
def constant(value: float) -> Initializer:
    """Return the initializer that fills a parameter with `value`."""
    return functools.partial(jnp.full_like, fill_value=value)


zeros, ones = constant(0.0), constant(1.0)


def uniform(noise: Float[Array, "..."]) -> Float[Array, "..."]:
    """Map standard normal noise to U(0, 1), by the normal CDF."""
    return jax.scipy.special.ndtr(noise)


@functools.cache
def normal_of(std: float) -> Initializer:
    """Return the initializer of N(0, std^2)."""
    return lambda noise: std * noise


@functools.cache
def uniform_within(bound: float) -> Initializer:
    """Return the initializer of U(-bound, bound)."""
    return lambda noise: bound * (2 * uniform(noise) - 1)


def kaiming_normal(fan_out: int) -> Initializer:
    """Return the initializer of N(0, 2 / fan_out). Reference: He et al., 2015."""
    return normal_of(math.sqrt(2 / fan_out))


def xavier_uniform(fan_in: int, fan_out: int) -> Initializer:
    """Return the initializer of U(-a, a), of variance 2 / (fan_in + fan_out). Reference: Glorot and Bengio, 2010."""
    return uniform_within(math.sqrt(6 / (fan_in + fan_out)))


def parameter(shape: tuple[int, ...], initializer: Initializer) -> nnx.Param:
    """Declare a float32 parameter."""
    return nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32), initializer=initializer)


def statistic(shape: tuple[int, ...], initializer: Initializer) -> nnx.BatchStat:
    """Declare a float32 running statistic, which training updates without a gradient."""
    return nnx.BatchStat(jax.ShapeDtypeStruct(shape, jnp.float32), initializer=initializer)


def state_shapes(state: Any) -> dict[str, Any]:
    """Return the shapes in an nnx state, as a nested dict."""
    flat = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in nnx.to_flat_state(state)}
    return nnx.traversals.unflatten_mapping(flat)


def init_state(state: Any, key: Key[Array, ""]) -> dict[str, Any]:
    """Initialize all values of an nnx state.

    Returns:
        A nested dict, with integers as list indices.
    """
    flat = dict(nnx.to_flat_state(state))
    noise = jax.random.normal(key, (sum(variable.size for variable in flat.values()),), jnp.float32)
    values, start = {}, 0
    for path, variable in flat.items():
        values[path] = variable.initializer(noise[start : start + variable.size].reshape(variable.shape))
        start += variable.size
    return nnx.traversals.unflatten_mapping(values)
