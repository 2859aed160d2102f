"""RoIAlign: features of boxes, by bilinear interpolation at points of a grid of bins.

The bins of a box split its height and its width equally. In each bin, samples lie on a regular grid; the result is
their mean. A sample more than one cell outside the map counts as zero, and one within that cell as the value at the
border. This is mmcv's `RoIAlign` with `aligned=True`, torchvision's compiled one, and ONNX's with "half_pixel".

Interpolation and mean of samples are separable: each bin has a few rows and a few columns of the map, with weights. All
levels of a pyramid are one table of cells, from which every box gathers its own, so that no box is computed at levels
that are not its own.

Reference: He et al., Mask R-CNN, 2017.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from mambaout_jax.ops.loops import bounded_loop
from mambaout_jax.ops.sharding import map_rows

# Boxes whose gradient is added to the map at a time.
GRADIENT_CHUNK = 8
# Square boxes with sides of at least twice this, in pixels, leave the first level of a pyramid. Reference:
# mmdetection's `SingleRoIExtractor`; Lin et al., Feature Pyramid Networks, 2017, give level 4 to 224 px.
FINEST_SCALE = 56


class Taps(NamedTuple):
    """The cells along an axis that the bins of boxes are weighted means of; (n, bins, taps)."""

    index: Int[Array, "n bins t"]
    weight: Float[Array, "n bins t"]


def assign_levels(boxes: Float[Array, "*n 4"], num_levels: int) -> Int[Array, "*n"]:
    """Return the level of a pyramid for each box, from its area: 0 for squares of less than twice `FINEST_SCALE` px.

    Each further level doubles the side.
    """
    sides = jnp.sqrt(jnp.maximum((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1]), 0))
    return jnp.clip(jnp.floor(jnp.log2(sides / FINEST_SCALE + 1e-6)), 0, num_levels - 1).astype(jnp.int32)


def roi_align(
    maps: Sequence[Float[Array, "b _ _ c"]],
    boxes: Float[Array, "b n 4"],
    levels: Int[Array, "b n"],
    *,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int = 2,
    max_sampling_ratio: int = 8,
) -> Float[Array, "b n bins bins c"]:
    """Compute the features of boxes, each at one level of a pyramid of maps.

    Interpolation is in float32. Only the maps have a gradient.

    Args:
        maps: of any size and number; for a single map, `levels` are zeros.
        boxes: (x1, y1, x2, y2) in pixels of the image; float32.
        levels: the map of each box, such as those of `assign_levels`.
        strides: of the maps, in pixels.
        output_size: bins along each axis.
        sampling_ratio: number of samples per bin along each axis. 0 for an adaptive number, one sample per cell: the
            extent of the bin in cells, rounded up.
        max_sampling_ratio: largest adaptive number of samples. All boxes cost as much as the one with the most.
            Beyond this limit, a bin is the mean of `max_sampling_ratio` + 1 of its cells.
    """
    sizes = [x.shape[1:3] for x in maps]
    offsets = np.cumsum([0, *(height * width for height, width in sizes)])[:-1]
    heights, widths, offsets, scales = (
        jnp.asarray(values)[levels]
        for values in (
            np.array([size[0] for size in sizes], np.int32),
            np.array([size[1] for size in sizes], np.int32),
            offsets.astype(np.int32),
            1 / np.asarray(strides, np.float32),
        )
    )
    boxes = lax.stop_gradient(boxes).astype(jnp.float32) * scales[..., None]
    find = jax.vmap(
        partial(
            _find_taps, output_size=output_size, sampling_ratio=sampling_ratio, max_sampling_ratio=max_sampling_ratio
        )
    )
    rows = find(boxes[..., 1] - 0.5, boxes[..., 3] - boxes[..., 1], heights)
    columns = find(boxes[..., 0] - 0.5, boxes[..., 2] - boxes[..., 0], widths)
    rows = rows._replace(index=rows.index * widths[..., None, None] + offsets[..., None, None])

    def gather(maps, boxes, rows, columns):
        table = jnp.concatenate([x.reshape(x.shape[0], -1, x.shape[3]) for x in maps], axis=1)
        used = _num_used(boxes, output_size, max_sampling_ratio) if sampling_ratio == 0 else None
        return jax.vmap(gather_bins, in_axes=(0, 0, 0, None))(table, rows, columns, used)

    return map_rows(gather, list(maps), boxes, rows, columns)


def crop_masks(
    masks: Float[Array, "n h w"], boxes: Float[Array, "n 4"], *, output_size: int, max_sampling_ratio: int = 8
) -> Float[Array, "n bins bins"]:
    """Compute the features of one box in each mask, with an adaptive number of samples, by matrix products.

    Args:
        masks: of one channel each.
        boxes: in pixels of the masks.
        max_sampling_ratio: as of `roi_align`.
    """
    height, width = masks.shape[1:]
    find = partial(_find_taps, output_size=output_size, sampling_ratio=0, max_sampling_ratio=max_sampling_ratio)
    matrices = []
    for axis, side in ((1, height), (0, width)):
        taps = find(boxes[:, axis] - 0.5, boxes[:, axis + 2] - boxes[:, axis], jnp.full(len(boxes), side))
        hits = taps.index[..., None] == jnp.arange(side)[None, None, None]
        matrices.append(jnp.where(hits, taps.weight[..., None], 0.0).sum(2))
    return jnp.einsum("nyh,nhw,nxw->nyx", matrices[0], masks, matrices[1], precision=lax.Precision.HIGHEST)


def _find_taps(
    start: Float[Array, " n"],
    extent: Float[Array, " n"],
    length: Int[Array, " n"],
    *,
    output_size: int,
    sampling_ratio: int,
    max_sampling_ratio: int,
) -> Taps:
    """Return the cells of the bins along one axis, with their weights.

    Args:
        start, extent: of the boxes, in cells, where the center of the first cell is 0.
        length: number of cells.
    """
    start, extent, last = (x.astype(jnp.float32)[:, None, None] for x in (start, extent, length - 1))
    bin_extent = extent / output_size
    bin_start = start + _range(output_size)[None, :, None] * bin_extent
    if sampling_ratio:
        at = bin_start + (_range(sampling_ratio)[None, None] + 0.5) / sampling_ratio * bin_extent
        weight = _is_inside(at, last).astype(jnp.float32) / sampling_ratio
        at = jnp.clip(at, 0, last)
        below = jnp.floor(at)
        index = jnp.stack([below, jnp.minimum(below + 1, last)], -1)
        weight = jnp.stack([1 - (at - below), at - below], -1) * weight[..., None]
        shape = (*at.shape[:2], 2 * sampling_ratio)
        return Taps(index.reshape(shape).astype(jnp.int32), weight.reshape(shape))
    number = jnp.ceil(bin_extent)
    at = bin_start + (_range(max_sampling_ratio)[None, None] + 0.5) / jnp.maximum(number, 1) * bin_extent
    counted = _is_inside(at, last) & (_range(max_sampling_ratio)[None, None] < number)
    # Samples are at most one cell apart, so that they lie between consecutive cells.
    at = jnp.clip(at, 0, last)
    numbers = _range(max_sampling_ratio + 1)[None, None]
    cells = jnp.floor(at[..., :1]) + numbers
    near = jnp.maximum(1 - jnp.abs(at[..., :, None] - cells[..., None, :]), 0)
    weight = (counted.astype(jnp.float32)[..., None] * near).sum(2) / jnp.maximum(number, 1)
    spread = bin_start + (numbers + 0.5) / (max_sampling_ratio + 1) * bin_extent
    few = number <= max_sampling_ratio
    cells = jnp.where(few, cells, jnp.round(jnp.clip(spread, 0, last)))
    weight = jnp.where(few, weight, _is_inside(spread, last).astype(jnp.float32) / (max_sampling_ratio + 1))
    return Taps(jnp.minimum(cells, last).astype(jnp.int32), weight)


def _range(count: int) -> Float[Array, " n"]:
    return jnp.arange(count, dtype=jnp.float32)


def _is_inside(at, last):
    return (at >= -1) & (at <= last + 1)


def _num_used(boxes: Float[Array, "b n 4"], output_size: int, max_sampling_ratio: int) -> Int[Array, ""]:
    """Return the number of taps of the box, in cells, that has the most."""
    sides = (boxes[..., 2:] - boxes[..., :2]) / output_size
    return jnp.clip(jnp.ceil(sides.max(initial=0)), 0, max_sampling_ratio).astype(jnp.int32) + 1


@jax.custom_vjp
def gather_bins(
    table: Float[Array, "p c"], rows: Taps, columns: Taps, used: Int[Array, ""] | None
) -> Float[Array, "n bins bins c"]:
    """Sum the cells at all pairs of a row and a column, with the products of their weights.

    Args:
        rows: `index` is that of the first cell of the row in the table.
        used: number of leading taps that have weights; None for all.
    """

    def add(total, i, j):
        cells = rows.index[:, :, None, i] + columns.index[:, None, :, j]
        weight = rows.weight[:, :, None, i] * columns.weight[:, None, :, j]
        return total + jnp.take(table, cells, axis=0, mode="clip").astype(jnp.float32) * weight[..., None]

    (n, bins, taps), channels = rows.index.shape, table.shape[1]
    total = jnp.zeros((n, bins, bins, channels), jnp.float32)
    if used is None:
        for i in range(taps):
            for j in range(taps):
                total = add(total, i, j)
    else:

        def add_pair(state):
            pair, total = state
            return pair + 1, add(total, pair // used, pair % used)

        _, total = bounded_loop(taps * taps, lambda state: state[0] < used * used, add_pair, (jnp.int32(0), total))
    return total.astype(table.dtype)


def _gather_bins_forward(table, rows, columns, used):
    return gather_bins(table, rows, columns, used), (table, rows, columns)


def _gather_bins_backward(residuals, cotangent):
    """Add the gradient of a few boxes at a time to the table, so that no array has all samples of all boxes."""
    table, rows, columns = residuals
    n = len(cotangent)
    chunk = max(1, min(GRADIENT_CHUNK, n))
    pad = -n % chunk

    def split(x):
        x = jnp.pad(x, ((0, pad), *((0, 0),) * (x.ndim - 1)))
        return x.reshape(-1, chunk, *x.shape[1:])

    def add(total, part):
        cotangent, rows, columns = part
        cells = rows.index[:, :, None, :, None] + columns.index[:, None, :, None, :]
        weight = rows.weight[:, :, None, :, None] * columns.weight[:, None, :, None, :]
        values = cotangent[:, :, :, None, None, :].astype(jnp.float32) * weight[..., None]
        return total.at[cells.reshape(-1)].add(values.reshape(-1, total.shape[1]), mode="drop"), None

    total, _ = lax.scan(add, jnp.zeros(table.shape, jnp.float32), jax.tree.map(split, (cotangent, rows, columns)))
    return total.astype(table.dtype), None, None, None


gather_bins.defvjp(_gather_bins_forward, _gather_bins_backward)
