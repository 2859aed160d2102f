"""Matrix product whose gradient needs no transposed copies on XLA's CPU backend."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from mambaout_jax.ops.sharding import spec_of, with_auto_axes


def matmul(x: Float[Array, "*batch i"], weight: Float[Array, "i o"]) -> Float[Array, "*batch o"]:
    """Multiply the last axis by a matrix.

    In programs lowered for CPU, the gradient of the weight is a product of two matrices. Autodiff emits a contraction
    over (b, h, w) instead, for which XLA's CPU backend first transposes both operands into copies.
    """
    out = PartitionSpec(*spec_of(x)[:-1], spec_of(weight)[-1])
    return with_auto_axes(_matmul, x, weight, out=out)


@jax.custom_vjp
def _matmul(x, weight):
    return x @ weight


def _fwd(x, weight):
    return _matmul(x, weight), (x, weight)


def _bwd(residuals, dy):
    x, weight = residuals
    return dy @ weight.T, lax.platform_dependent(x, dy, cpu=_flat_gradient, default=_gradient)


_matmul.defvjp(_fwd, _bwd)


def _gradient(x, dy):
    batch = tuple(range(x.ndim - 1))
    return jnp.tensordot(x, dy, (batch, batch))


def _flat_gradient(x, dy):
    rows = math.prod(x.shape[:-1])  # not -1, which is ambiguous if an axis is empty
    return x.reshape(rows, x.shape[-1]).T @ dy.reshape(rows, dy.shape[-1])
