"""Depthwise convolution with one implementation per kind of hardware.

XLA's CPU backend runs a grouped convolution as scalar loops. The same sum, written as one multiply-add of a shifted map
per kernel weight, compiles to a single vectorized loop. Compilers for accelerators optimize the convolution itself and
do worse with the sum; on TPUs, Pallas kernels replace it (`ops.pallas.depthwise_tpu`).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from mambaout_jax.ops.conv import convolve, convolve_vjp
from mambaout_jax.ops.kernel_choice import kernels
from mambaout_jax.ops.pallas import depthwise_tpu
from mambaout_jax.ops.pallas.bands import call_kernel, is_supported, should_be_faster
from mambaout_jax.ops.sharding import spec_of, with_auto_axes

# XLA's CPU backend fuses a slice into its consumer unless the consumer would evaluate it more than 15 times. In a loop
# over channels, the offset of a fused dynamic slice is a load, which prevents LLVM from vectorizing the loop.
_READS_UNFUSED = 16


def depthwise_conv2d(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw 1 c"],
    bias: Float[Array, " c"] | None = None,
    *,
    impl: str = "auto",
) -> Float[Array, "b h w c"]:
    """Convolve each channel with its own kernel at stride 1, zero-padded to the size of the input.

    y[b, h, w, c] = bias[c] + sum over i, j of kernel[i, j, 0, c] * x[b, h + i - kh // 2, w + j - kw // 2, c]: a
    cross-correlation, as in every deep learning library. The result has the dtype of `x`.

    Args:
        kernel: kh and kw are odd, and may exceed the size of the map.
        impl: "lax" is the grouped convolution; "shift" is the sum of shifted maps, accumulated in float32; "pallas" are
            kernels for TPUs, interpreted elsewhere (not under `shard_map`), for square kernels of 3, 5 and 7 and x in
            float32 or bfloat16; "auto" is "shift" in programs lowered for CPU, and otherwise follows `use_kernels`:
            "pallas" in programs for TPUs where it applies and should be faster, or else "lax". All have a custom VJP
            and no forward-mode derivative.

    Raises:
        ValueError: kh or kw is even, or `impl` is unknown or does not apply.
    """
    kh, kw = kernel.shape[:2]
    if kh % 2 == 0 or kw % 2 == 0:
        raise ValueError(f"the depthwise kernel is {kh}x{kw}; expected odd sides, to preserve the size of the map")
    if impl not in _IMPLS:
        raise ValueError(f"impl is {impl!r}; expected one of {', '.join(map(repr, _IMPLS))}")
    chosen = kernels() if impl == "auto" else impl
    band = _band_of(x, kernel) if chosen in ("auto", "pallas") else None
    if impl == "pallas" and band is None:
        raise ValueError(
            f"impl 'pallas' does not support a kernel of {kh}x{kw} on a map of shape {x.shape} and dtype {x.dtype}; "
            "use 'auto' or 'lax'"
        )
    forms = _IMPLS[impl]
    if band is not None and chosen == "pallas":
        forms = _IMPLS["pallas"]
    elif band is not None and should_be_faster(band, x):
        forms = _auto_with_kernels, _auto_with_kernels_vjp
    *rows, channels = spec_of(x)
    out = PartitionSpec(*rows, channels or spec_of(kernel)[-1])
    return with_auto_axes(partial(_with_vjp, *forms), x, kernel, bias, out=out)


# `lax.platform_dependent` is called inside the VJP, not differentiated: its own VJP stores the residuals of all
# branches.
@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _with_vjp(forward, vjp, x, kernel, bias):
    return forward(x, kernel, bias)


def _fwd(forward, vjp, x, kernel, bias):
    return forward(x, kernel, bias), (x, kernel, bias)


def _bwd(forward, vjp, residuals, dy):
    return vjp(*residuals, dy)


_with_vjp.defvjp(_fwd, _bwd)


def _auto(x, kernel, bias):
    return lax.platform_dependent(x, kernel, bias, cpu=_shift, default=_lax)


def _auto_vjp(x, kernel, bias, dy):
    return lax.platform_dependent(x, kernel, bias, dy, cpu=_shift_vjp, default=_lax_vjp)


def _auto_with_kernels(x, kernel, bias):
    return lax.platform_dependent(x, kernel, bias, cpu=_shift, default=partial(_pallas, interpret=False))


def _auto_with_kernels_vjp(x, kernel, bias, dy):
    default = partial(_pallas_vjp, interpret=False)
    return lax.platform_dependent(x, kernel, bias, dy, cpu=_shift_vjp, default=default)


def _band_of(x, kernel):
    """Return the sizes of the blocks of Pallas kernels; None if they do not apply."""
    kh, kw = kernel.shape[:2]
    applies = is_supported(x) and kh == kw and kh in (3, 5, 7)
    return depthwise_tpu.band_of(x.shape, kh, x.dtype) if applies else None


def _lax(x, kernel, bias):
    return _add(convolve(*_same(x, kernel), x, kernel.astype(x.dtype)), bias)


def _lax_vjp(x, kernel, bias, dy):
    dx, dkernel = convolve_vjp(*_same(x, kernel), x, kernel.astype(x.dtype), dy)
    return dx, dkernel.astype(kernel.dtype), _bias_gradient(bias, dy)


def _add(y, bias):
    return y if bias is None else y + bias.astype(y.dtype)[None, None, None]


def _bias_gradient(bias, dy):
    return None if bias is None else dy.astype(jnp.float32).sum((0, 1, 2)).astype(bias.dtype)


def _pallas(x, kernel, bias, *, interpret=True):
    return call_kernel(depthwise_tpu.forward, _lax, interpret, x, kernel, bias)


def _pallas_vjp(x, kernel, bias, dy, *, interpret=True):
    dx = call_kernel(depthwise_tpu.forward, _lax, interpret, dy, kernel[::-1, ::-1], None)
    weights = jnp.zeros(kernel.shape), jnp.zeros(kernel.shape[-1])
    gradients = partial(depthwise_tpu.gradients, size=len(kernel))
    dkernel, dbias = call_kernel(gradients, lambda x, dy: _lax_vjp(x, *weights, dy)[1:], interpret, x, dy)
    return dx.astype(x.dtype), dkernel.astype(kernel.dtype), None if bias is None else dbias.astype(bias.dtype)


def _same(x, kernel):
    kh, kw = kernel.shape[:2]
    return (1, 1), (kh // 2, kw // 2), x.shape[-1]


def _shift(x, kernel, bias=None):
    kh, kw = kernel.shape[:2]
    h, w = x.shape[1:3]
    x_pad = _pad(x, kh // 2, kh // 2, kw // 2)
    kernel = kernel.astype(jnp.float32)
    weights = [[kernel[i : i + 1, j : j + 1] for j in range(kw)] for i in range(kh)]
    rows = (sum(x_pad[:, i : i + h, j : j + w] * weights[i][j] for j in range(kw)) for i in range(kh))
    return _add(sum(rows), bias).astype(x.dtype)


def _shift_vjp(x, kernel, bias, dy):
    dx = _shift(dy, kernel[::-1, ::-1])
    return dx.astype(x.dtype), _shift_kernel_gradient(x, kernel, dy), _bias_gradient(bias, dy)


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


_IMPLS = {
    "auto": (_auto, _auto_vjp),
    "lax": (_lax, _lax_vjp),
    "shift": (_shift, _shift_vjp),
    "pallas": (_pallas, _pallas_vjp),
}
