"""Normalisation with a gradient that keeps little."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(
    x: Float[Array, "*batch d"], weight: Float[Array, " d"], bias: Float[Array, " d"], eps: float
) -> Float[Array, "*batch d"]:
    """Compute (x - mean) / sqrt(variance + eps) * weight + bias over the last axis.

    In float32, rounded once to the dtype of x. For the gradient x, the mean and the deviation are kept; autodiff
    keeps three arrays of the size of x.
    """
    return _fwd(x, weight, bias, eps)[0]


def _fwd(x, weight, bias, eps):
    x32 = x.astype(jnp.float32)
    mean = x32.mean(-1, keepdims=True)
    # Of the centred values, not E[x^2] - E[x]^2, which loses its digits when the variance is small.
    scale = lax.rsqrt(jnp.square(x32 - mean).mean(-1, keepdims=True) + eps)
    y = (x32 - mean) * scale * _row(weight, x) + _row(bias, x)
    return y.astype(x.dtype), (x, mean, scale, weight, bias)


def _bwd(eps, residuals, dy):
    x, mean, scale, weight, bias = residuals
    dy = dy.astype(jnp.float32)
    normal = (x.astype(jnp.float32) - mean) * scale
    pull = dy * _row(weight, x)
    dx = scale * (pull - pull.mean(-1, keepdims=True) - normal * (pull * normal).mean(-1, keepdims=True))
    batch = tuple(range(x.ndim - 1))
    dweight, dbias = (dy * normal).sum(batch), dy.sum(batch)
    return dx.astype(x.dtype), dweight.astype(weight.dtype), dbias.astype(bias.dtype)


layer_norm.defvjp(_fwd, _bwd)


def _row(vector, x):
    return vector.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
