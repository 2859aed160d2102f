"""Depthwise convolution with one implementation for CPUs and one for accelerators.

XLA's CPU backend runs a grouped convolution as scalar loops. The same sum, written as one multiply-add of a shifted map
per kernel weight, compiles to a single vectorized loop. Compilers for accelerators optimize the convolution itself and
do worse with the sum.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from mambaout_jax.ops.conv import convolve, convolve_vjp
from mambaout_jax.ops.sharding import spec_of, with_auto_axes

# XLA's CPU backend fuses a slice into its consumer unless the consumer would evaluate it more than 15 times. In a loop
# over channels, the offset of a fused dynamic slice is a load, which prevents LLVM from vectorizing the loop.
_READS_UNFUSED = 16


def depthwise_conv2d(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw 1 c"],
    *,
    impl: str = "auto",
) -> Float[Array, "b h w c"]:
    """Convolve each channel with its own kernel at stride 1, zero-padded to the size of the input.

    y[b, h, w, c] = sum over i, j of kernel[i, j, 0, c] * x[b, h + i - kh // 2, w + j - kw // 2, c]: a
    cross-correlation, as in every deep learning library. The result has the dtype of `x`.

    Args:
        kernel: kh and kw are odd, and may exceed the size of the map.
        impl: "lax" is the grouped convolution; "shift" is the sum of shifted maps, accumulated in float32; "auto" is
            "shift" in programs lowered for CPU and "lax" elsewhere. All have a custom VJP and no forward-mode
            derivative.

    Raises:
        ValueError: kh or kw is even, or `impl` is unknown.
    """
    kh, kw = kernel.shape[:2]
    if kh % 2 == 0 or kw % 2 == 0:
        raise ValueError(f"the depthwise kernel is {kh}x{kw}; odd sides are expected, to preserve the size of the map")
    if impl not in _IMPLS:
        raise ValueError(f"impl is {impl!r}; 'auto', 'lax' or 'shift' is expected")
    *rows, channels = spec_of(x)
    out = PartitionSpec(*rows, channels or spec_of(kernel)[-1])
    return with_auto_axes(partial(_with_vjp, *_IMPLS[impl]), x, kernel, out=out)


# `lax.platform_dependent` is called inside the VJP, not differentiated: its own VJP stores the residuals of all
# branches.
@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _with_vjp(forward, vjp, x, kernel):
    return forward(x, kernel)


def _fwd(forward, vjp, x, kernel):
    return forward(x, kernel), (x, kernel)


def _bwd(forward, vjp, residuals, dy):
    return vjp(*residuals, dy)


_with_vjp.defvjp(_fwd, _bwd)


def _auto(x, kernel):
    return lax.platform_dependent(x, kernel, cpu=_shift, default=_lax)


def _auto_vjp(x, kernel, dy):
    return lax.platform_dependent(x, kernel, dy, cpu=_shift_vjp, default=_lax_vjp)


def _lax(x, kernel):
    return convolve(*_same(x, kernel), x, kernel.astype(x.dtype))


def _lax_vjp(x, kernel, dy):
    dx, dkernel = convolve_vjp(*_same(x, kernel), x, kernel.astype(x.dtype), dy)
    return dx, dkernel.astype(kernel.dtype)


def _same(x, kernel):
    kh, kw = kernel.shape[:2]
    return (1, 1), (kh // 2, kw // 2), x.shape[-1]


def _shift(x, kernel):
    kh, kw = kernel.shape[:2]
    h, w = x.shape[1:3]
    x_pad = _pad(x, kh // 2, kh // 2, kw // 2)
    kernel = kernel.astype(jnp.float32)
    weights = [[kernel[i : i + 1, j : j + 1] for j in range(kw)] for i in range(kh)]
    rows = (sum(x_pad[:, i : i + h, j : j + w] * weights[i][j] for j in range(kw)) for i in range(kh))
    return sum(rows).astype(x.dtype)


def _shift_vjp(x, kernel, dy):
    dx = _shift(dy, kernel[::-1, ::-1])
    return dx.astype(x.dtype), _shift_kernel_gradient(x, kernel, dy)


def _shift_kernel_gradient(x, kernel, dy):
    """Compute the gradient of the kernel: the sum of the forward pass with dy as the kernel, for a kh x kw result.

    Each step of the loop adds whole rows of dy, with one multiply-add over (b, kh, kw, c) per pixel. The batch is
    summed last, outside the loop, so that a sharded batch costs one all-reduce.
    """
    kh, kw = kernel.shape[:2]
    h, w = x.shape[1:3]
    rows = min(h, -(-_READS_UNFUSED // w))
    steps = -(-h // rows)
    missing = steps * rows - h
    x_pad = _pad(x, kh // 2, kh // 2 + missing, kw // 2)
    dy_pad = _pad(dy, 0, missing, 0)

    def step(total, start):
        x_rows = lax.dynamic_slice_in_dim(x_pad, start, rows + kh - 1, axis=1)
        dy_rows = lax.dynamic_slice_in_dim(dy_pad, start, rows, axis=1)
        pixels = ((i, j) for i in range(rows) for j in range(w))
        return total + sum(
            x_rows[:, i : i + kh, j : j + kw] * dy_rows[:, i : i + 1, j : j + 1] for i, j in pixels
        ), None

    # Zeros like a part of x, to vary over the same axes under `shard_map`.
    total, _ = lax.scan(step, jnp.zeros_like(x_pad[:, :kh, :kw]), rows * jnp.arange(steps))
    return total.sum(0)[:, :, None].astype(kernel.dtype)


def _pad(x, top, bottom, side):
    return jnp.pad(x.astype(jnp.float32), ((0, 0), (top, bottom), (side, side), (0, 0)))


_IMPLS = {"auto": (_auto, _auto_vjp), "lax": (_lax, _lax_vjp), "shift": (_shift, _shift_vjp)}
