"""Pallas TPU kernels for the Gated CNN block: x + scale * fc2(act(gate) * conv(value)) in one pass over the map.

gate and value are linear functions of the normalized x, with the same number of channels: the convolution of channels
that the block does not convolve is the identity. The forward kernel reads x and writes the result. The backward pass
recomputes everything else from x, in two kernels, because the gradient of a row depends on the rows around it twice.
The first computes the gradients of all products but that of the convolved value, and writes the convolved value and the
gradient of its convolution; the second reads both and computes the gradients of the convolution and of x.

The kernels have been compiled for TPUs and interpreted on CPUs, but not run on a TPU.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from mambaout_jax.ops.pallas.bands import (
    COLUMNS,
    LANES,
    SUBLANES,
    Band,
    band_specs,
    choose_band,
    convolve_columns,
    correlate_band,
    kernel_size,
    like,
    pad_band,
    padded_shape,
    parameters,
    rows_spec,
    to_kernel_layout,
    whole_lanes,
    with_halo,
)
from mambaout_jax.ops.sharding import map_rows

# JAX 0.11 moved it from `pallas` to `pallas.tpu`.
_reciprocal = pltpu.reciprocal if hasattr(pltpu, "reciprocal") else pl.reciprocal
# Rows of the matrix products of a step: enough to hide the loading of weights, few enough for their results in VMEM.
_PRODUCT_ROWS = 256


class Weights(NamedTuple):
    """Weights in float32 of a block whose hidden channels are whole groups of lanes, the convolved ones first.

    Attributes:
        gate, gate_bias, value, value_bias: products of the normalized x; products are computed in the dtype of x.
        conv: the bias and the k * k weights of the kernel, for c of the h channels.
        out, out_bias: product of the gated channels.
    """

    gate: Float[Array, "d h"]
    gate_bias: Float[Array, "1 h"]
    value: Float[Array, "d h"]
    value_bias: Float[Array, "1 h"]
    conv: Float[Array, "s c"]
    out: Float[Array, "h d"]
    out_bias: Float[Array, "1 d"]


class Bands(NamedTuple):
    """Sizes of the blocks of each kernel."""

    forward: Band
    products: Band
    input: Band


def bands_of(x: Float[Array, "b h w d"], hidden: int, conv: int, size: int) -> Bands | None:
    """Return the sizes of blocks; None if none fits into VMEM.

    Args:
        hidden: hidden channels, and `conv` of them that are convolved: whole groups of lanes.
        size: size of the kernel of the convolution.
    """
    _, height, width, dim = x.shape
    pad, itemsize = size // 2, x.dtype.itemsize
    lanes = whole_lanes(dim)

    def bytes_of(around, inside, padded, band):
        """Count the bytes of a kernel from the lanes of its arrays: with rows around a band, without, and padded."""
        pixels = width * band.images
        blocks = 2 * pixels * itemsize * ((band.rows + 2 * band.halo) * around + band.rows * inside)
        surrounded = (band.rows + 2 * pad) * (width + 2 * pad) * band.images * padded * 4
        products = max(_PRODUCT_ROWS, pixels) * hidden * (3 * 4 + 3 * itemsize)
        return blocks + surrounded + products + 3 * lanes * hidden * (2 * itemsize + 4)

    arrays = (
        # forward: x; the result and, once, the normalized x
        (lanes, 1.5 * lanes, conv),
        # products: x; gradients of the result and of the normalized x, value, the gradient of its convolution
        (lanes, 2.5 * lanes + 2 * conv, conv),
        # input: the last two; x, and the gradients of the result, of the normalized x and of x
        (2 * conv, 4 * lanes, 2 * conv),
    )
    bands = [choose_band(height, pad, x.dtype, partial(bytes_of, *sizes), divides=True) for sizes in arrays]
    return None if None in bands else Bands(*bands)


def forward(
    x: Float[Array, "b h w d"],
    scale: Float[Array, " b"],
    weights: Weights,
    *,
    eps: float,
    interpret: bool = False,
) -> Float[Array, "b h w d"]:
    """Compute the block; `scale` is 0 for dropped branches, and eps is that of the norm, which has no weights here."""
    run = partial(_forward, eps=eps, interpret=interpret)
    # Cast before, so that sharded weights are gathered in the dtype of the products.
    return map_rows(run, x, scale, replicated=(_cast(weights, x.dtype),))


def backward(
    x: Float[Array, "b h w d"],
    scale: Float[Array, " b"],
    weights: Weights,
    dout: Float[Array, "b h w d"],
    *,
    eps: float,
    interpret: bool = False,
) -> tuple[Float[Array, "b h w d"], Weights]:
    """Compute the gradients of x and, in float32, of the weights."""
    run = partial(_backward, eps=eps, interpret=interpret)
    dx, sums = map_rows(run, x, scale, dout, replicated=(_cast(weights, x.dtype),))
    return dx, jax.tree.map(lambda x: x.sum(0), sums)


def _bands(x, weights):
    return bands_of(x, weights.gate.shape[1], weights.conv.shape[1], kernel_size(weights.conv))


def _cast(weights, dtype):
    """Return the weights with the matrices in the dtype of their products."""
    return weights._replace(**{name: getattr(weights, name).astype(dtype) for name in ("gate", "value", "out")})


def _scale_rows(scale, images):
    """Return the scale of each image, in all lanes of a row."""
    scale = jnp.pad(scale.astype(jnp.float32), (0, -len(scale) % images))
    return jnp.broadcast_to(scale[:, None], (len(scale), LANES))


def _grid(x, band):
    return x.shape[2] // band.images, 1, x.shape[0] // band.rows


def _from_kernel_layout(x, count):
    return x.transpose(2, 0, 1, 3)[:count]


def _whole(x):
    """Return the block of an array that all grid steps read or add to."""
    return pl.BlockSpec(x.shape, lambda *_: (0,) * len(x.shape))


def _scale_spec(band):
    return pl.BlockSpec((band.images, LANES), lambda b, c, r: (b, 0))


def _group_rows(band: Band, width: int) -> int:
    """Return the rows whose matrix products are computed together: a divisor of the band."""
    divisors = (count for count in range(1, band.rows + 1) if band.rows % count == 0)
    return max(count for count in divisors if count == 1 or count * width * band.images <= _PRODUCT_ROWS)


# Jitted, so that JAX traces a kernel once and not for every block of a model; `inline` leaves programs as they were.
@partial(jax.jit, static_argnames=("eps", "interpret"), inline=True)
def _forward(x, scale, weights, *, eps, interpret):
    count, band = len(x), _bands(x, weights).forward
    scale, x = _scale_rows(scale, band.images), to_kernel_layout(x, band.images)
    height, width, _, dim = x.shape
    products = _group_rows(band, width) * width * band.images
    y = pl.pallas_call(
        partial(_forward_kernel, band=band, height=height, eps=eps),
        grid=_grid(x, band),
        in_specs=[*band_specs(band, height, width, dim), _scale_spec(band), *map(_whole, weights)],
        out_specs=rows_spec(band, width, dim),
        out_shape=like(x, x.shape, x.dtype),
        scratch_shapes=[
            *_scratch(x, band, weights),
            pltpu.VMEM((products, weights.gate.shape[1]), x.dtype),
        ],
        compiler_params=parameters("parallel", "parallel", "parallel"),
        interpret=interpret,
        name="gated_cnn_forward",
    )(*with_halo(x, band), scale, *weights)
    return _from_kernel_layout(y, count)


def _scratch(x, band, weights):
    """Return the memory for the normalized x of a band, its padded value, and gate and identity value of a step."""
    width, dim = x.shape[1], x.shape[3]
    hidden, conv, pad = weights.gate.shape[1], weights.conv.shape[1], kernel_size(weights.conv) // 2
    products = _group_rows(band, width) * width * band.images
    return [
        pltpu.VMEM((band.rows, width, band.images, dim), x.dtype),
        pltpu.VMEM(padded_shape(band, width, conv, pad), jnp.float32),
        pltpu.VMEM((products, hidden), jnp.float32),
        pltpu.VMEM((products, max(hidden - conv, LANES)), jnp.float32),
    ]


def _normalize(x, eps):
    """Return normalized rows and the scale, in float32."""
    x = x.astype(jnp.float32)
    centered = x - x.mean(-1, keepdims=True)
    scale = lax.rsqrt(jnp.square(centered).mean(-1, keepdims=True) + eps)
    return centered * scale, scale


def _gelu(x, dtype):
    """Return the exact GELU and its derivative in float32, precise enough for a result of a dtype.

    The normal CDF is computed with formula 7.1.26 of Abramowitz and Stegun, Handbook of Mathematical Functions, 1964,
    whose exponential is that of the density, and which takes half of the instructions of `lax.erf`.
    """
    half_square = 0.5 * x * x
    tail = jnp.exp(-half_square)
    divisor = 1 + (0.3275911 * math.sqrt(0.5)) * jnp.abs(x)
    t = _reciprocal(divisor, approx=True)
    for _ in range(1 if dtype == jnp.bfloat16 else 2):  # steps of Newton's method, which begin with 8 exact bits
        t = t * (2 - divisor * t)
    below = 0.0
    for coefficient in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        below = (below + 0.5 * coefficient) * t
    below = below * tail
    cdf = jnp.where(x < 0, below, 1 - below)
    return x * cdf, cdf + x * tail * (1 / math.sqrt(2 * math.pi))


def _product(x, y, contract=(1, 0)):
    """Multiply two matrices, over the given axes, with a result in float32."""
    return lax.dot_general(x, y, (((contract[0],), (contract[1],)), ((), ())), preferred_element_type=jnp.float32)


def _pad_value(rows, normalized, padded, weights, band, height, eps, convolved=None):
    """Write the normalized x of a band, and the convolved part of value of the band and the rows around it.

    Args:
        convolved: a reference that takes this part of value too, without the rows around the band.
    """
    conv = weights.conv.shape[1]

    def value(x, row):
        x_hat = _normalize(x, eps)[0].astype(x.dtype)
        result = _product(x_hat.reshape(-1, x.shape[-1]), weights.value[:, :conv]) + weights.value_bias[:, :conv]
        result = result.reshape(*x.shape[:2], conv)
        if row is not None:
            normalized[row] = x_hat
            if convolved is not None:
                convolved[row] = result.astype(convolved.dtype)
        return result

    pad_band(rows, padded, band, height, kernel_size(weights.conv) // 2, value)


def _each_pixel_run(rows, width, images, first, body):
    """Call body(row, start, columns, rows of the products) for runs of columns in `rows` rows from `first`."""
    # Unrolled, so that the compiler overlaps these vector instructions with the matrix products.
    runs = pl.cdiv(width, COLUMNS)
    for row in range(rows):
        for run in range(runs):
            start, end = run * width // runs, (run + 1) * width // runs
            at = slice((row * width + start) * images, (row * width + end) * images)
            body(first + row, start, end - start, at)


def _mixed(padded, other, weights, row, start, columns, at):
    """Yield the lanes of each group, and conv(value) there: (columns * images, lanes)."""
    conv, hidden = weights.conv.shape[1], weights.gate.shape[1]
    for group in range(hidden // LANES):
        lanes = slice(group * LANES, (group + 1) * LANES)
        if group * LANES < conv:
            yield lanes, jnp.concatenate(list(convolve_columns(padded, weights.conv, group, row, start, columns)))
        else:
            yield lanes, other[at, group * LANES - conv : (group + 1) * LANES - conv]


def _identity_value(normalized, weights):
    """Return the part of value that is not convolved."""
    conv = weights.conv.shape[1]
    return _product(normalized, weights.value[:, conv:]) + weights.value_bias[:, conv:]


def _forward_kernel(*refs, band: Band, height: int, eps: float):
    *rows, scale = refs[:-13]
    weights, (out, normalized, padded, gate, rest, mixed) = Weights(*refs[-13:-6]), refs[-6:]
    x, conv, hidden = rows[0], weights.conv.shape[1], weights.gate.shape[1]
    width, dim = x.shape[1], x.shape[3]
    _pad_value(rows, normalized, padded, weights, band, height, eps)
    step = _group_rows(band, width)

    def compute(index, carry):
        at = pl.ds(index * step, step)
        x_hat = normalized[at].reshape(-1, dim)
        gate[...] = _product(x_hat, weights.gate[...]) + weights.gate_bias[...]
        if hidden > conv:
            rest[...] = _identity_value(x_hat, weights)

        def mix(row, start, columns, pixels):
            for lanes, value in _mixed(padded, rest, weights, row, start, columns, pixels):
                mixed[pixels, lanes] = (_gelu(gate[pixels, lanes], x.dtype)[0] * value).astype(mixed.dtype)

        _each_pixel_run(step, width, band.images, index * step, mix)
        y = _product(mixed[...], weights.out[...]) + weights.out_bias[...]
        y = y.reshape(step, width, band.images, dim) * scale[:, :1][None, None]
        out[at] = (x[at].astype(jnp.float32) + y).astype(out.dtype)
        return carry

    lax.fori_loop(0, band.rows // step, compute, 0)


@partial(jax.jit, static_argnames=("eps", "interpret"), inline=True)
def _backward(x, scale, dout, weights, *, eps, interpret):
    """Compute the gradient of x, and those of the weights for the images of a device, with a first axis of 1."""
    count, dim, size = len(x), x.shape[3], kernel_size(weights.conv)
    bands = _bands(x, weights)
    band, height, width = bands.products, *x.shape[1:3]
    scale = _scale_rows(scale, band.images)
    x, dout = to_kernel_layout(x, band.images), to_kernel_layout(dout, band.images)
    hidden, conv, pad = weights.gate.shape[1], weights.conv.shape[1], size // 2
    rows, rows_conv = rows_spec(band, width, dim), rows_spec(band, width, conv)
    of_conv = like(x, (*x.shape[:3], conv), x.dtype)
    products = _group_rows(band, width) * width * band.images

    def summed(*shapes):
        """Return shapes and blocks of results that all grid steps add to."""
        shapes = [like(x, (1, *shape), jnp.float32) for shape in shapes]
        return shapes, list(map(_whole, shapes))

    matrix, vector = (dim, hidden), (SUBLANES, hidden)
    shapes, specs = summed(matrix, vector, matrix, vector, matrix, (SUBLANES, dim))
    value, dconv, dnormalized, *sums = pl.pallas_call(
        partial(_products_kernel, band=band, height=height, eps=eps),
        grid=_grid(x, band),
        in_specs=[*band_specs(band, height, width, dim), _scale_spec(band), rows, *map(_whole, weights)],
        out_specs=[rows_conv, rows_conv, rows, *specs],
        out_shape=[of_conv, of_conv, like(x, x.shape, x.dtype), *shapes],
        scratch_shapes=[
            *_scratch(x, band, weights),
            pltpu.VMEM((products, hidden), jnp.float32),
            *[pltpu.VMEM((products, hidden), x.dtype)] * 3,
        ],
        compiler_params=parameters("arbitrary", "arbitrary", "arbitrary"),
        interpret=interpret,
        name="gated_cnn_products",
    )(*with_halo(x, band), scale, dout, *weights)

    # The gradient of a convolution is the convolution with the reversed kernel, without bias.
    reversed_conv = jnp.concatenate([jnp.zeros_like(weights.conv[:1]), weights.conv[:0:-1]])
    shapes, specs = summed((dim, conv), (SUBLANES, conv), (1 + size * size, SUBLANES, conv))
    inputs = weights.value[:, :conv], reversed_conv
    band = bands.input
    rows, around = rows_spec(band, width, dim), band_specs(band, height, width, conv)
    dx, dvalue, dvalue_bias, dconv_weight = pl.pallas_call(
        partial(_input_kernel, band=band, height=height, eps=eps),
        grid=_grid(x, band),
        in_specs=[*around, *around, rows, rows, rows, *map(_whole, inputs)],
        out_specs=[rows, *specs],
        out_shape=[like(x, x.shape, x.dtype), *shapes],
        scratch_shapes=[
            *[pltpu.VMEM(padded_shape(band, width, conv, pad), jnp.float32)] * 2,
            pltpu.VMEM((_group_rows(band, width) * width * band.images, conv), x.dtype),
        ],
        compiler_params=parameters("arbitrary", "arbitrary", "arbitrary"),
        interpret=interpret,
        name="gated_cnn_input",
    )(*with_halo(value, band), *with_halo(dconv, band), x, dnormalized, dout, *inputs)
    dgate, dgate_bias, drest, drest_bias, dout_weight, dout_bias = sums
    return _from_kernel_layout(dx, count), Weights(
        dgate,
        dgate_bias[:, :1],
        jnp.concatenate([dvalue, drest[:, :, conv:]], -1),
        jnp.concatenate([dvalue_bias, drest_bias[:, :, conv:]], -1)[:, :1],
        dconv_weight.sum(2),
        dout_weight.transpose(0, 2, 1),
        dout_bias[:, :1],
    )


def _products_kernel(*refs, band: Band, height: int, eps: float):
    *rows, scale, dout = refs[:-24]
    weights, results, scratch = Weights(*refs[-24:-17]), refs[-17:-8], refs[-8:]
    convolved, dconv, dnormalized, *sums = results
    dgate_sum, dgate_bias, drest_sum, drest_bias, dout_sum, dout_bias = (ref.at[0] for ref in sums)
    normalized, padded, gate, rest, dmixed, mixed, dgate, dvalue = scratch
    x, conv, hidden = rows[0], weights.conv.shape[1], weights.gate.shape[1]
    width, dim = x.shape[1], x.shape[3]
    _pad_value(rows, normalized, padded, weights, band, height, eps, convolved)
    _zero_at_first(sums)
    step = _group_rows(band, width)
    ones = jnp.ones((SUBLANES, step * width * band.images), x.dtype)

    def compute(index, carry):
        at = pl.ds(index * step, step)
        x_hat = normalized[at].reshape(-1, dim)
        dy = (dout[at].astype(jnp.float32) * scale[:, :1][None, None]).astype(x.dtype).reshape(-1, dim)
        gate[...] = _product(x_hat, weights.gate[...]) + weights.gate_bias[...]
        dmixed[...] = _product(dy, weights.out[...], (1, 1))
        if hidden > conv:
            rest[...] = _identity_value(x_hat, weights)

        def mix(row, start, columns, pixels):
            for lanes, value in _mixed(padded, rest, weights, row, start, columns, pixels):
                activated, slope = _gelu(gate[pixels, lanes], x.dtype)
                dactivated = dmixed[pixels, lanes]
                mixed[pixels, lanes] = (activated * value).astype(x.dtype)
                dgate[pixels, lanes] = (dactivated * value * slope).astype(x.dtype)
                dvalue[pixels, lanes] = (dactivated * activated).astype(x.dtype)

        _each_pixel_run(step, width, band.images, index * step, mix)
        dconv[at] = dvalue[:, :conv].reshape(step, width, band.images, conv)
        total = _product(dgate[...], weights.gate[...], (1, 1))
        if hidden > conv:
            total += _product(dvalue[:, conv:], weights.value[:, conv:], (1, 1))
            drest_sum[:, conv:] += _product(x_hat, dvalue[:, conv:], (0, 0))
            drest_bias[:, conv:] += _product(ones, dvalue[:, conv:])
        dnormalized[at] = total.astype(x.dtype).reshape(step, width, band.images, dim)
        dgate_sum[...] += _product(x_hat, dgate[...], (0, 0))
        dgate_bias[...] += _product(ones, dgate[...])
        dout_sum[...] += _product(dy, mixed[...], (0, 0))
        dout_bias[...] += _product(ones, dy)
        return carry

    lax.fori_loop(0, band.rows // step, compute, 0)


def _zero_at_first(results):
    """In the first grid step, zero the results that all steps accumulate into."""

    @pl.when(sum(pl.program_id(axis) for axis in range(3)) == 0)
    def _():
        for result in results:
            result[...] = jnp.zeros_like(result)


def _input_kernel(*refs, band: Band, height: int, eps: float):
    around = 3 if band.halo else 1
    values, dconvs = refs[:around], refs[around : 2 * around]
    x, dnormalized, dout, value, reversed_conv, dx, *sums = refs[2 * around : -3]
    padded, dpadded, dvalue = refs[-3:]
    dvalue_sum, dvalue_bias, dconv_sum = (ref.at[0] for ref in sums)
    pad, groups = kernel_size(reversed_conv) // 2, reversed_conv.shape[1] // LANES
    width, dim = x.shape[1], x.shape[3]
    pad_band(values, padded, band, height, pad)
    pad_band(dconvs, dpadded, band, height, pad)
    _zero_at_first(sums)
    for group in range(groups):

        def read(row, column, group=group):
            return dpadded[group, pad + row, pad + column]

        correlate_band(padded, read, dconv_sum, group, height=band.rows, width=width)
    step = _group_rows(band, width)
    ones = jnp.ones((SUBLANES, step * width * band.images), x.dtype)

    def compute(index, carry):
        at = pl.ds(index * step, step)

        def convolve(row, start, columns, pixels):
            for group in range(groups):
                result = jnp.concatenate(list(convolve_columns(dpadded, reversed_conv, group, row, start, columns)))
                dvalue[pixels, group * LANES : (group + 1) * LANES] = result.astype(x.dtype)

        _each_pixel_run(step, width, band.images, index * step, convolve)
        normalized, scale = _normalize(x[at].reshape(-1, dim), eps)
        d = dnormalized[at].astype(jnp.float32).reshape(-1, dim) + _product(dvalue[...], value[...], (1, 1))
        d = scale * (d - d.mean(-1, keepdims=True) - normalized * (d * normalized).mean(-1, keepdims=True))
        dx[at] = (dout[at].astype(jnp.float32) + d.reshape(step, width, band.images, dim)).astype(x.dtype)
        dvalue_sum[...] += _product(normalized.astype(x.dtype), dvalue[...], (0, 0))
        dvalue_bias[...] += _product(ones, dvalue[...])
        return carry

    lax.fori_loop(0, band.rows // step, compute, 0)
