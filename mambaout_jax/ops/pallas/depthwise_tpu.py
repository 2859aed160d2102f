"""Pallas TPU kernels for the depthwise convolution at stride 1: forward, and the gradients of its weights.

Each grid step copies a band of rows to VMEM in float32, with zeros around it, and then adds k * k products per
register. XLA's own convolution multiplies diagonal blocks of 128 x 128 channels on the matrix unit instead, once per
weight of the kernel.

The kernels have been compiled for TPUs and interpreted on CPUs, but not run on a TPU.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from mambaout_jax.ops.pallas.bands import (
    LANES,
    SUBLANES,
    Band,
    band_specs,
    choose_band,
    convolve_columns,
    correlate_band,
    for_columns,
    kernel_size,
    like,
    pad_band,
    padded_shape,
    parameters,
    rows_spec,
    to_kernel_layout,
    with_halo,
)
from mambaout_jax.ops.sharding import map_rows


def band_of(shape: tuple[int, int, int, int], size: int, dtype: Any) -> Band | None:
    """Return the sizes of blocks for a map (b, h, w, c) and a kernel of `size` x `size`; None if none fits."""
    _, height, width, _ = shape
    pad, itemsize = size // 2, jnp.dtype(dtype).itemsize

    def bytes_of(band):
        row = width * band.images * LANES * itemsize
        padded = (band.rows + 2 * pad) * (width + 2 * pad) * band.images * LANES * 4
        return padded + 2 * row * (2 * band.rows + 2 * band.halo)

    return choose_band(height, pad, dtype, bytes_of)


def forward(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "k k 1 c"],
    bias: Float[Array, " c"] | None = None,
    *,
    interpret: bool = False,
) -> Float[Array, "b h w c"]:
    """Convolve each channel with its own kernel, zero-padded to the size of the input, and add the bias; k is odd."""
    channels = kernel.shape[-1]
    bias = jnp.zeros(channels) if bias is None else bias
    rows = bias[None], kernel.reshape(-1, channels)
    weights = jnp.concatenate([part.astype(jnp.float32) for part in rows])
    return map_rows(partial(_forward, interpret=interpret), x, replicated=(weights,))


def gradients(
    x: Float[Array, "b h w c"], dy: Float[Array, "b h w c"], size: int, *, interpret: bool = False
) -> tuple[Float[Array, "k k 1 c"], Float[Array, " c"]]:
    """Compute the gradients of a kernel of `size` x `size` and of the bias, in float32."""
    rows = map_rows(partial(_gradients, size=size, interpret=interpret), x, dy).sum((0, 2))
    return rows[1:].reshape(size, size, 1, -1), rows[0]


# Jitted, so that JAX traces a kernel once and not for every block of a model; `inline` leaves programs as they were.
@partial(jax.jit, static_argnames="interpret", inline=True)
def _forward(x, weights, *, interpret: bool):
    count, size = len(x), kernel_size(weights)
    band = band_of(x.shape, size, x.dtype)
    x = to_kernel_layout(x, band.images)
    height, width, images, channels = x.shape
    y = pl.pallas_call(
        partial(_forward_kernel, band=band, height=height),
        grid=(images // band.images, pl.cdiv(channels, LANES), pl.cdiv(height, band.rows)),
        in_specs=[
            *band_specs(band, height, width, LANES),
            pl.BlockSpec((len(weights), LANES), lambda b, c, r: (0, c)),
        ],
        out_specs=rows_spec(band, width, LANES),
        out_shape=like(x, x.shape, x.dtype),
        scratch_shapes=[pltpu.VMEM(padded_shape(band, width, LANES, size // 2), jnp.float32)],
        compiler_params=parameters("parallel", "parallel", "parallel"),
        interpret=interpret,
        name="depthwise_forward",
    )(*with_halo(x, band), weights)
    return y.transpose(2, 0, 1, 3)[:count]


def _forward_kernel(*refs, band: Band, height: int):
    *rows, weights, out, padded = refs
    pad_band(rows, padded, band, height, kernel_size(weights) // 2)

    def compute(row, start, columns, carry):
        for column, value in enumerate(convolve_columns(padded, weights, 0, row, start, columns)):
            out[row, start + column] = value.astype(out.dtype)
        return carry

    def compute_row(row, carry):
        return for_columns(out.shape[1], partial(compute, row), carry)

    lax.fori_loop(0, band.rows, compute_row, 0)


@partial(jax.jit, static_argnames=("size", "interpret"), inline=True)
def _gradients(x, dy, *, size: int, interpret: bool):
    """Compute the gradients of the images of a device, (1, 1 + k * k, 8, c): for each sublane separately."""
    band = band_of(x.shape, size, x.dtype)
    x, dy = (to_kernel_layout(rows, band.images) for rows in (x, dy))
    height, width, images, channels = x.shape
    sums = 1 + size * size, SUBLANES
    return pl.pallas_call(
        partial(_gradients_kernel, band=band, height=height),
        # Images and bands are inside, because they add to the same result.
        grid=(pl.cdiv(channels, LANES), images // band.images, pl.cdiv(height, band.rows)),
        in_specs=[
            *band_specs(band, height, width, LANES, order="cbr"),
            rows_spec(band, width, LANES, order="cbr"),
        ],
        out_specs=pl.BlockSpec((1, *sums, LANES), lambda c, b, r: (0, 0, 0, c)),
        out_shape=like(x, (1, *sums, channels), jnp.float32),
        scratch_shapes=[pltpu.VMEM(padded_shape(band, width, LANES, size // 2), jnp.float32)],
        compiler_params=parameters("parallel", "arbitrary", "arbitrary"),
        interpret=interpret,
        name="depthwise_gradients",
    )(*with_halo(x, band), dy)


def _gradients_kernel(*refs, band: Band, height: int):
    *rows, dy, out, padded = refs
    out = out.at[0]
    pad_band(rows, padded, band, height, kernel_size(out) // 2)

    @pl.when((pl.program_id(1) == 0) & (pl.program_id(2) == 0))
    def _():
        out[...] = jnp.zeros_like(out)

    valid = height - pl.program_id(2) * band.rows

    def read(row, column):
        value = dy[row, column].astype(jnp.float32)
        return value if height % band.rows == 0 else jnp.where(row < valid, value, 0)

    correlate_band(padded, read, out, 0, height=band.rows, width=dy.shape[1])
