"""Normalization with memory-efficient backward passes.

All functions compute in float32 and round once to the dtype of x. The variance is computed from centered values,
because E[x^2] - E[x]^2 cancels if the variance is small compared with the squared mean.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from mambaout_jax.ops.channels import per_channel
from mambaout_jax.ops.sharding import spec_of, with_auto_axes


def layer_norm(
    x: Float[Array, "*batch d"],
    weight: Float[Array, " d"],
    bias: Float[Array, " d"],
    eps: float,
    *,
    centered: bool = False,
) -> Float[Array, "*batch d"]:
    """Compute (x - mean) / sqrt(variance + eps) * weight + bias over the last axis.

    The backward pass stores x, the mean and the scale; autodiff would store three arrays of the size of x.

    Args:
        centered: the mean of x is 0 for every row, and x comes from a function that removes the mean of its gradient.
            Neither of them is computed, which saves a pass over x and one over the gradient.
    """
    return with_auto_axes(partial(_layer_norm, eps, centered), x, weight, bias, out=spec_of(x))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _layer_norm(eps, centered, x, weight, bias):
    return _layer_norm_fwd(eps, centered, x, weight, bias)[0]


def _layer_norm_fwd(eps, centered, x, weight, bias):
    x32 = x.astype(jnp.float32)
    mean = None if centered else x32.mean(-1, keepdims=True)
    deviation = x32 if centered else x32 - mean
    scale = lax.rsqrt(jnp.square(deviation).mean(-1, keepdims=True) + eps)
    y = deviation * scale * per_channel(weight, x32) + per_channel(bias, x32)
    return y.astype(x.dtype), (x, mean, scale, weight, bias)


def _layer_norm_bwd(eps, centered, residuals, dy):
    x, mean, scale, weight, bias = residuals
    dy = dy.astype(jnp.float32)
    x32 = x.astype(jnp.float32)
    x_hat = (x32 if centered else x32 - mean) * scale
    dx_hat = dy * per_channel(weight, dy)
    # The gradient of the variance, and that of the mean.
    dx = dx_hat - x_hat * (dx_hat * x_hat).mean(-1, keepdims=True)
    dx = scale * (dx if centered else dx - dx_hat.mean(-1, keepdims=True))
    batch = tuple(range(x.ndim - 1))
    dweight, dbias = (dy * x_hat).sum(batch), dy.sum(batch)
    return dx.astype(x.dtype), dweight.astype(weight.dtype), dbias.astype(bias.dtype)


_layer_norm.defvjp(_layer_norm_fwd, _layer_norm_bwd)


def rms_norm(x: Float[Array, "*batch d"], weight: Float[Array, " d"], eps: float) -> Float[Array, "*batch d"]:
    """Compute x / sqrt(mean(x^2) + eps) * weight over the last axis.

    The backward pass stores x and the scale. Reference: Zhang and Sennrich, Root Mean Square Layer Normalization, 2019.
    """
    return with_auto_axes(partial(_rms_norm, eps), x, weight, out=spec_of(x))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rms_norm(eps, x, weight):
    return _rms_norm_fwd(eps, x, weight)[0]


def _rms_norm_fwd(eps, x, weight):
    x32 = x.astype(jnp.float32)
    scale = lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + eps)
    return (x32 * scale * per_channel(weight, x32)).astype(x.dtype), (x, scale, weight)


def _rms_norm_bwd(eps, residuals, dy):
    x, scale, weight = residuals
    dy = dy.astype(jnp.float32)
    x_hat = x.astype(jnp.float32) * scale
    dx_hat = dy * per_channel(weight, dy)
    dx = scale * (dx_hat - x_hat * (dx_hat * x_hat).mean(-1, keepdims=True))
    dweight = (dy * x_hat).sum(tuple(range(x.ndim - 1)))
    return dx.astype(x.dtype), dweight.astype(weight.dtype)


_rms_norm.defvjp(_rms_norm_fwd, _rms_norm_bwd)


def batch_norm(
    x: Float[Array, "*batch d"], weight: Float[Array, " d"], bias: Float[Array, " d"], eps: float
) -> tuple[Float[Array, "*batch d"], Float[Array, " d"], Float[Array, " d"]]:
    """Compute (x - mean) / sqrt(variance + eps) * weight + bias with statistics per channel, over all other axes.

    If the batch is sharded, the statistics are those of the whole batch; under `shard_map` and `pmap`, those of the
    rows of one device. The backward pass stores x, the mean and the scale.

    Returns:
        The result, the mean, and the biased variance. The statistics are float32, and no gradient flows through them.

    Reference: Ioffe and Szegedy, Batch Normalization, 2015.
    """
    channels = PartitionSpec(spec_of(x)[-1])
    out = spec_of(x), channels, channels
    return with_auto_axes(partial(_batch_norm, eps), x, weight, bias, out=out)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _batch_norm(eps, x, weight, bias):
    return _batch_norm_fwd(eps, x, weight, bias)[0]


def _batch_norm_fwd(eps, x, weight, bias):
    batch = tuple(range(x.ndim - 1))
    x32 = x.astype(jnp.float32)
    mean = x32.mean(batch, keepdims=True)
    variance = jnp.square(x32 - mean).mean(batch, keepdims=True)
    scale = lax.rsqrt(variance + eps)
    y = (x32 - mean) * scale * per_channel(weight, x32) + per_channel(bias, x32)
    return (y.astype(x.dtype), mean.reshape(-1), variance.reshape(-1)), (x, mean, scale, weight, bias)


def _batch_norm_bwd(eps, residuals, cotangents):
    x, mean, scale, weight, bias = residuals
    batch = tuple(range(x.ndim - 1))
    dy = cotangents[0].astype(jnp.float32)
    x_hat = (x.astype(jnp.float32) - mean) * scale
    dweight, dbias = (dy * x_hat).sum(batch, keepdims=True), dy.sum(batch, keepdims=True)
    count = x.size // x.shape[-1]
    dx = per_channel(weight, dy) * scale * (dy - dbias / count - x_hat * (dweight / count))
    return dx.astype(x.dtype), dweight.reshape(-1).astype(weight.dtype), dbias.reshape(-1).astype(bias.dtype)


_batch_norm.defvjp(_batch_norm_fwd, _batch_norm_bwd)


def normalize(
    x: Float[Array, "*batch d"],
    mean: Float[Array, " d"],
    variance: Float[Array, " d"],
    weight: Float[Array, " d"],
    bias: Float[Array, " d"],
    eps: float,
) -> Float[Array, "*batch d"]:
    """Compute (x - mean) / sqrt(variance + eps) * weight + bias with given statistics."""
    x32 = x.astype(jnp.float32)
    scale = per_channel(lax.rsqrt(variance.astype(jnp.float32) + eps) * weight.astype(jnp.float32), x32)
    return ((x32 - per_channel(mean, x32)) * scale + per_channel(bias, x32)).astype(x.dtype)
