"""Exact GELU whose backward pass stores only the input, and a fast softplus."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


@jax.custom_vjp
def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Compute x * Phi(x), where Phi is the standard normal CDF: exact, not the tanh approximation.

    Phi is computed with `erf`, as in PyTorch, in float32; the result is rounded once. `jax.nn.gelu(approximate=False)`
    uses `erfc`, which keeps the relative precision of results below 1e-6 but is slower on CPU. The backward pass stores
    only x.

    Reference: Hendrycks and Gimpel, Gaussian Error Linear Units, 2016.
    """
    x32 = x.astype(jnp.float32)
    return (x32 * _normal_cdf(x32)).astype(x.dtype)


def _fwd(x):
    return gelu(x), x


def _bwd(x, dy):
    x32 = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * jnp.square(x32)) / math.sqrt(2 * math.pi)
    return ((dy.astype(jnp.float32) * (_normal_cdf(x32) + x32 * density)).astype(x.dtype),)


gelu.defvjp(_fwd, _bwd)


def _normal_cdf(x):
    return 0.5 * (1 + lax.erf(x * math.sqrt(0.5)))


@jax.custom_jvp
def softplus(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Compute log(1 + exp(x)) without overflow, with the values of `jax.nn.softplus`, which is slower on CPUs."""
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


softplus.defjvps(lambda dx, _, x: dx * jax.nn.sigmoid(x))
