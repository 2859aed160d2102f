"""Axis-aligned boxes: areas, overlaps, deltas between boxes, and grids of anchors.

A box is (x1, y1, x2, y2) in pixels, of which the upper left corner of the image is (0, 0): its width is x2 - x1.
Coordinates are float32.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

# Lower bound of the union, so that two empty boxes have an IoU of 0, as in mmdetection's `bbox_overlaps`.
MIN_UNION = 1e-6
# Largest change of width and height by `decode_boxes`, as a factor and its inverse. Reference: Detectron, 2018.
MAX_SCALE = 1000 / 16


def box_area(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """Return width * height."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def box_intersection(a: Float[Array, "*batch n 4"], b: Float[Array, "*batch m 4"]) -> Float[Array, "*batch n m"]:
    """Return the area that each box of `a` has in common with each box of `b`."""
    a, b = a[..., :, None, :], b[..., None, :, :]
    corner = jnp.maximum(a[..., :2], b[..., :2])
    sides = jnp.maximum(jnp.minimum(a[..., 2:], b[..., 2:]) - corner, 0)
    return sides[..., 0] * sides[..., 1]


def box_iou(a: Float[Array, "*batch n 4"], b: Float[Array, "*batch m 4"]) -> Float[Array, "*batch n m"]:
    """Return the intersection over union of each box of `a` with each box of `b`; 0 for two boxes without area."""
    common = box_intersection(a, b)
    union = box_area(a)[..., :, None] + box_area(b)[..., None, :] - common
    return common / jnp.maximum(union, MIN_UNION)


def clip_boxes(boxes: Float[Array, "*n 4"], size: Float[Array, "*m 2"] | Int[Array, "*m 2"]) -> Float[Array, "*n 4"]:
    """Return the parts of boxes inside of images.

    Args:
        size: (height, width), one for each leading index of the boxes.
    """
    size = size.reshape(*size.shape[:-1], *(1,) * (boxes.ndim - size.ndim), 2)
    limits = jnp.concatenate([size[..., ::-1]] * 2, axis=-1).astype(boxes.dtype)
    return jnp.clip(boxes, 0, jnp.broadcast_to(limits, boxes.shape))


def _centers_and_sides(boxes: Float[Array, "*n 4"]) -> tuple[Float[Array, "*n 2"], Float[Array, "*n 2"]]:
    return (boxes[..., :2] + boxes[..., 2:]) * 0.5, boxes[..., 2:] - boxes[..., :2]


def _broadcast_stds(stds: Sequence[float], deltas: Array) -> Array:
    return jnp.broadcast_to(jnp.asarray(stds, deltas.dtype), deltas.shape)


def encode_boxes(
    boxes: Float[Array, "*n 4"], targets: Float[Array, "*n 4"], stds: tuple[float, float, float, float]
) -> Float[Array, "*n 4"]:
    """Compute the deltas (dx, dy, dw, dh) from boxes to targets, divided by `stds`.

    dx and dy are differences of centers in units of the box's width and height; dw and dh are logarithms of the ratios
    of widths and heights. Deltas of boxes without width or height are not finite.

    Reference: Girshick et al., Rich Feature Hierarchies, 2014.
    """
    (center, sides), (target_center, target_sides) = map(_centers_and_sides, (boxes, targets))
    deltas = jnp.concatenate([(target_center - center) / sides, jnp.log(target_sides / sides)], axis=-1)
    return deltas / _broadcast_stds(stds, deltas)


def decode_boxes(
    boxes: Float[Array, "*m 4"], deltas: Float[Array, "*n 4"], stds: tuple[float, float, float, float]
) -> Float[Array, "*n 4"]:
    """Apply deltas of `encode_boxes` to boxes, which are broadcast against the deltas.

    dw and dh are limited, so that a side is multiplied by `MAX_SCALE` at most and divided by it at least.
    """
    center, sides = _centers_and_sides(boxes)
    deltas = deltas * _broadcast_stds(stds, deltas)
    limit = math.log(MAX_SCALE)
    center = center + deltas[..., :2] * sides
    half = sides * jnp.exp(jnp.clip(deltas[..., 2:], -limit, limit)) * 0.5
    return jnp.concatenate([center - half, center + half], axis=-1)


def make_anchors(
    map_size: tuple[int, int], stride: int, scale: int | float, ratios: Sequence[float]
) -> Float[Array, "n 4"]:
    """Return the anchors of a feature map, in the order of rows, columns and ratios.

    The anchors of the cell in row y and column x have the center (x * stride, y * stride), the cell's upper left
    corner, as in mmdetection. Their area is (scale * stride) ** 2. They may exceed the image.

    Args:
        map_size: (height, width) of the map.
        stride: of the map, in pixels of the image.
        scale: side of a square anchor in cells.
        ratios: heights divided by widths.
    """
    roots = np.sqrt(np.asarray(ratios, np.float32))
    widths, heights = (np.float32(scale * stride / 2) * factor for factor in (1 / roots, roots))
    around = np.stack([-widths, -heights, widths, heights], axis=1)
    y, x = (jnp.arange(side, dtype=jnp.float32) * stride for side in map_size)
    grid = jnp.meshgrid(x, y)
    centers = jnp.stack([*grid, *grid], axis=-1)
    return (centers[:, :, None] + around[None, None]).reshape(-1, 4)


def valid_cells(map_size: tuple[int, int], stride: int, size: Int[Array, "b 2"]) -> Bool[Array, "b h w"]:
    """Return which cells of a map belong to an image of (height, width) at the upper left of its canvas.

    A cell of which only a part is inside belongs to it.
    """
    cells = -(-size // stride)
    rows, columns = (jnp.arange(side)[None] < cells[:, i : i + 1] for i, side in enumerate(map_size))
    return rows[:, :, None] & columns[:, None, :]
