"""What the TPU kernels for feature maps share: bands of rows in VMEM, with zeros around the map.

A map is an array (h, w, images, channels), with images along the sublanes and channels along the lanes of a register,
so that a shift in space is an offset of an address. A grid step has a block of images and a band of rows; the rows
above and below, which a convolution reads too, are blocks of the same array. The axes of a grid are those of images,
lanes and bands, in any order with the bands last.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from mambaout_jax.ops.pallas.tpu_only import tpu_only
from mambaout_jax.ops.sharding import rows_per_device

LANES, SUBLANES = 128, 8
# Widest run of columns whose sums are in registers at a time: 2 x 16 of 64 registers, for two bytes per value.
COLUMNS = 16
# VMEM of TPUs with the least (v2 to v4), and the share of it that is left to the compiler, for intermediate results.
_LEAST_VMEM, _RESERVED = 16 * 2**20, 1 / 8


class Band(NamedTuple):
    """Sizes of the blocks of a kernel.

    Attributes:
        images: images per block, those of one register of the dtype of x.
        rows: rows per block; all of the map if they fit.
        halo: rows of the blocks above and below, which divide `rows`; 0 if a block has all rows.
    """

    images: int
    rows: int
    halo: int


def whole_lanes(channels: int) -> int:
    """Return a number of channels rounded up to whole groups of lanes."""
    return -(-channels // LANES) * LANES


def vmem_limit() -> int:
    """Return the bytes of VMEM of the TPU that the mesh consists of, or of the smallest one."""
    return pltpu.get_tpu_info().vmem_capacity_bytes if for_tpu() else _LEAST_VMEM


def for_tpu() -> bool:
    """Return whether the mesh, or else the default device, consists of TPUs."""
    return pltpu.is_tpu_device()


def is_supported(x: Array) -> bool:
    """Return whether kernels support an array: static, nonempty shape and float32 or bfloat16.

    Exported programs may have a dynamic batch size.
    """
    is_known = all(isinstance(side, int) and side > 0 for side in x.shape)
    return is_known and x.dtype in (jnp.float32, jnp.bfloat16)


def should_be_faster(band: Band, x: Array) -> bool:
    """Return whether at least half of the images that a device computes together are not padding.

    Never on several devices without a mesh: XLA cannot partition kernels, and `map_rows` needs the mesh.
    """
    can_map = not jax.sharding.get_abstract_mesh().empty or jax.device_count() == 1
    return can_map and 2 * rows_per_device(x) >= band.images


def choose_band(
    height: int, pad: int, dtype: Any, bytes_of: Callable[[Band], int], *, divides: bool = False
) -> Band | None:
    """Return the band with the fewest rows beyond the map, then the most rows; None if none fits into VMEM.

    Args:
        height: rows of the map.
        pad: rows that a convolution reads above and below each row.
        bytes_of: returns the bytes that a kernel needs.
        divides: allow only bands whose rows divide the height.
    """
    images, limit = 32 // jnp.dtype(dtype).itemsize, vmem_limit() * (1 - _RESERVED)
    bands = [Band(images, height, 0)]
    bands += [Band(images, rows, halo) for halo in range(pad, 2 * pad + 2) for rows in range(halo, height, halo)]
    fitting = [band for band in bands if bytes_of(band) <= limit and not (divides and height % band.rows)]
    return min(fitting, key=lambda band: (-height % band.rows, -band.rows, band.halo), default=None)


def to_kernel_layout(x: Float[Array, "b h w c"], images: int) -> Float[Array, "h w images c"]:
    """Return x with its images padded to whole blocks, behind its rows and columns: XLA can store x in this order."""
    return jnp.pad(x, ((0, -len(x) % images), (0, 0), (0, 0), (0, 0))).transpose(1, 2, 0, 3)


def rows_spec(band: Band, width: int, lanes: int, *, order: str = "bcr", rows: int | None = None, at=None):
    """Return the block of a band; `order` are the axes of the grid: images, lanes, bands."""

    def index(*grid):
        b, c, r = (grid[order.index(axis)] for axis in "bcr")
        return r if at is None else at(r), 0, b, c

    return pl.BlockSpec((rows or band.rows, width, band.images, lanes), index)


def band_specs(band: Band, height: int, width: int, lanes: int, *, order: str = "bcr") -> list[pl.BlockSpec]:
    """Return the blocks of a band and, if it does not have all rows, of those above and below."""
    whole = rows_spec(band, width, lanes, order=order)
    if not band.halo:
        return [whole]
    per_band, last = band.rows // band.halo, pl.cdiv(height, band.halo) - 1
    halo = partial(rows_spec, band, width, lanes, order=order, rows=band.halo)
    return [
        whole,
        halo(at=lambda r: jnp.maximum(r * per_band - 1, 0)),
        halo(at=lambda r: jnp.minimum((r + 1) * per_band, last)),
    ]


def with_halo(x: Array, band: Band) -> list[Array]:
    """Return the arguments for the blocks of `band_specs`."""
    return [x] * (3 if band.halo else 1)


def padded_shape(band: Band, width: int, lanes: int, pad: int) -> tuple[int, ...]:
    """Return the shape of a band with its surroundings, (groups of lanes, h, w, images, lanes)."""
    return lanes // LANES, band.rows + 2 * pad, width + 2 * pad, band.images, LANES


def pad_band(rows: Sequence[Any], padded: Any, band: Band, height: int, pad: int, compute=None) -> None:
    """Write a band to `padded`, in float32 and with what surrounds it: other rows of the map, and zeros.

    Args:
        rows: the blocks of `band_specs`.
        padded: a reference of `padded_shape`.
        compute: a function of a row (w, images, c) and its number in the band, None for rows around it; its result is
            written instead of the row.
    """
    (x, *halo), width = rows, rows[0].shape[1]
    groups, inside = padded.shape[0], pl.ds(pad, width)
    top = pl.program_id(2) * band.rows
    for column in (*range(pad), *range(pad + width, 2 * pad + width)):
        padded[:, :, column] = jnp.zeros((groups, padded.shape[1], *padded.shape[3:]), jnp.float32)

    def write(at, values, valid, row=None):
        values = (values if compute is None else compute(values, row)).astype(jnp.float32)
        # Rows outside of the map may have any values.
        values = values if valid is True else jnp.where(valid, values, 0)
        for group in range(groups):
            padded[group, at, inside] = values[..., group * LANES : (group + 1) * LANES]

    def copy(row, carry):
        write(pad + row, x[row], height % band.rows == 0 or top + row < height, row)
        return carry

    lax.fori_loop(0, band.rows, copy, 0)
    for row in range(pad):
        if halo:
            write(row, halo[0][band.halo - pad + row], top > 0)
            write(pad + band.rows + row, halo[1][row], top + band.rows + row < height)
        else:
            for at in (row, pad + band.rows + row):
                padded[:, at, inside] = jnp.zeros((groups, width, *padded.shape[3:]), jnp.float32)


def for_columns(width: int, body: Callable[[Any, int, Any], Any], carry: Any) -> Any:
    """Compute carry = body(start, columns, carry) for runs of columns, in a loop over those of equal width."""
    columns = pl.cdiv(width, pl.cdiv(width, COLUMNS))
    whole = width // columns
    carry = lax.fori_loop(0, whole, lambda index, carry: body(index * columns, columns, carry), carry)
    return body(whole * columns, width % columns, carry) if width % columns else carry


def kernel_size(weights: Any) -> int:
    """Return the size of the kernel in an array of a bias and the weights, (1 + size * size, c)."""
    return math.isqrt(weights.shape[0] - 1)


def convolve_columns(
    padded: Any, weights: Any, group: int, row: Any, start: Any, columns: int
) -> Iterator[Float[Array, "images lanes"]]:
    """Compute the convolution of some pixels of a row, for a group of lanes.

    Args:
        padded: a reference of `padded_shape`.
        weights: a reference (1 + size * size, c) of the bias and the kernel.
    """
    size, lanes = kernel_size(weights), slice(group * LANES, (group + 1) * LANES)
    total = [jnp.broadcast_to(weights[:1, lanes], padded.shape[3:])] * columns
    for i in range(size):
        row_weights = [weights[1 + i * size + j : 2 + i * size + j, lanes] for j in range(size)]
        for column in range(columns + size - 1):
            value = padded[group, row + i, start + column]
            for j in range(max(0, column - columns + 1), min(size, column + 1)):
                total[column - j] += value * row_weights[j]
    yield from total


def correlate_band(padded: Any, read: Callable[[Any, Any], Array], out: Any, group: int, *, height: int, width: int):
    """Add the products of a padded band and the map that `read(row, column)` returns to `out` (1 + size * size, 8, c).

    The first row of the result is the sum of the second map, for the bias. Sublanes are not summed.
    """
    size, lanes = kernel_size(out), slice(group * LANES, (group + 1) * LANES)

    def add_columns(i, row, start, columns, sums):
        values = [padded[group, row + i, start + column] for column in range(size - 1)]
        for column in range(columns):
            values.append(padded[group, row + i, start + column + size - 1])
            other = read(row, start + column)
            factors = [1, *values] if i == 0 else values
            sums = tuple(total + factor * other for total, factor in zip(sums, factors, strict=True))
            del values[0]
        return sums

    # One row of the kernel at a time, whose sums fit into registers.
    for i in range(size):

        def add_row(row, sums, i=i):
            return for_columns(width, partial(add_columns, i, row), sums)

        first, last = (0 if i == 0 else 1 + i * size), 1 + (i + 1) * size
        zeros = (jnp.zeros(padded.shape[3:], jnp.float32),) * (last - first)
        for index, total in enumerate(lax.fori_loop(0, height, add_row, zeros), first):
            out[index, :, lanes] += total.reshape(-1, SUBLANES, LANES).sum(0)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def call_kernel(kernel: Callable[..., Any], general: Callable[..., Any], interpret: bool, *arguments: Any) -> Any:
    """Call a kernel in programs lowered for TPUs, and otherwise `general`, which returns the same without kernels.

    The derivative, which only second derivatives of an op use, is that of `general`.

    Args:
        interpret: interpret the kernel on other platforms.
    """
    default = partial(kernel, interpret=True) if interpret else general
    return lax.platform_dependent(*arguments, tpu=partial(tpu_only, kernel), default=default)


@call_kernel.defjvp
def _call_kernel_jvp(kernel, general, interpret, primals, tangents):
    return jax.jvp(general, primals, tangents)


def like(x: Array, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """Return the shape of a result that varies over the same axes as x under `shard_map`."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(x).manual_axis_type)


def parameters(*semantics: str) -> pltpu.CompilerParams:
    """Return the parameters of a kernel: the semantics of its grid, and a limit for its arrays and the compiler's."""
    return pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=int(vmem_limit() * (1 - _RESERVED / 4)))
