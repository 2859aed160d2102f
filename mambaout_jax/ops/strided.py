"""Strided convolution whose gradient is a matrix product on XLA's CPU backend."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from mambaout_jax.ops.conv import convolve
from mambaout_jax.ops.sharding import spec_of, with_auto_axes


def strided_conv2d(
    x: Float[Array, "b h w i"], kernel: Float[Array, "kh kw i o"], stride: int
) -> Float[Array, "b ho wo o"]:
    """Convolve with kh // 2 and kw // 2 zeros on each side of the map, as in PyTorch with padding=k // 2.

    ho = (h - 1) // stride + 1. In programs lowered for CPU, the gradient is that of the same sum as one product of
    patches and kernel, which is faster than XLA's gradient of a strided convolution; the forward pass is not.

    Args:
        kernel: kh and kw are odd.
    """
    *rows, _ = spec_of(x)
    return with_auto_axes(partial(_strided, stride), x, kernel, out=PartitionSpec(*rows, spec_of(kernel)[-1]))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _strided(stride, x, kernel):
    return _convolve(x, kernel, stride)


def _fwd(stride, x, kernel):
    return _convolve(x, kernel, stride), (x, kernel)


def _bwd(stride, residuals, dy):
    def vjp_of(form):
        return lambda x, kernel, dy: jax.vjp(partial(form, stride=stride), x, kernel)[1](dy)

    return lax.platform_dependent(*residuals, dy, cpu=vjp_of(_multiply_patches), default=vjp_of(_convolve))


_strided.defvjp(_fwd, _bwd)


def _convolve(x, kernel, stride):
    kh, kw = kernel.shape[:2]
    return convolve((stride, stride), (kh // 2, kw // 2), 1, x, kernel)


def _multiply_patches(x, kernel, stride):
    kh, kw, _, out = kernel.shape
    b, h, w, _ = x.shape
    ho, wo = (h - 1) // stride + 1, (w - 1) // stride + 1
    x_pad = jnp.pad(x, ((0, 0), (kh // 2, kh // 2), (kw // 2, kw // 2), (0, 0)))
    rows, columns = (ho - 1) * stride + 1, (wo - 1) * stride + 1
    taps = [x_pad[:, i : i + rows : stride, j : j + columns : stride] for i in range(kh) for j in range(kw)]
    patches = jnp.concatenate(taps, axis=-1)
    y = patches.reshape(b * ho * wo, -1) @ kernel.reshape(-1, out)
    return y.reshape(b, ho, wo, out)
