"""Non-maximum suppression of boxes, with static shapes."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from mambaout_jax.ops.boxes import box_iou
from mambaout_jax.ops.loops import bounded_loop

# Boxes that are compared with all others of the same tile at once.
TILE = 256


class NMSResult(NamedTuple):
    """The boxes that a suppression keeps, in the order of descending scores.

    Args:
        index: of the box in the input; 0 where `valid` is false.
        valid: false for entries beyond the kept boxes.
    """

    index: Int[Array, " k"]
    valid: Bool[Array, " k"]


def nms(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, " n"],
    *,
    iou_threshold: float,
    max_output: int,
    valid: Bool[Array, " n"] | None = None,
    groups: Int[Array, " n"] | None = None,
) -> NMSResult:
    """Keep a box if no kept box of its group with a higher score overlaps it by more than a threshold.

    Boxes are visited in the order of descending scores, equal scores in the order of the input, until `max_output`
    boxes are kept. A box without area overlaps nothing. Under `jax.vmap`, all rows take as long as the slowest one.

    Args:
        boxes: (x1, y1, x2, y2) in pixels; float32.
        iou_threshold: largest intersection over union with a kept box.
        max_output: static number of entries of the result.
        valid: boxes that take part; None for all.
        groups: a number for each box, such as its class: boxes of different groups do not suppress each other. None
            for one group.
    """
    if not boxes.shape[0]:
        return NMSResult(jnp.zeros(max_output, jnp.int32), jnp.zeros(max_output, bool))
    valid = jnp.ones(scores.shape, bool) if valid is None else valid
    groups = jnp.zeros(scores.shape, jnp.int32) if groups is None else groups.astype(jnp.int32)
    return _suppress(boxes, scores, valid, groups, jnp.float32(iou_threshold), max_output=max_output)


# A call of its own in jaxprs, with the threshold as an argument, which exports to ONNX replace by ONNX's operator.
@partial(jax.jit, static_argnames="max_output")
def _suppress(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, " n"],
    valid: Bool[Array, " n"],
    groups: Int[Array, " n"],
    iou_threshold: Float[Array, ""],
    *,
    max_output: int,
) -> NMSResult:
    tile = min(TILE, boxes.shape[0])
    # A stable sort: valid boxes first, in the order of their scores.
    order = jnp.lexsort((-scores, ~valid))
    pad = -boxes.shape[0] % tile
    order_padded = jnp.pad(order, (0, pad))
    candidates = jnp.take(boxes, order_padded, axis=0), jnp.take(groups, order_padded)
    num_valid = valid.sum()

    def unfinished(state):
        start, count, *_ = state
        return (start < num_valid) & (count < max_output)

    def add_tile(state):
        start, count, index, kept_boxes, kept_groups = state
        of_tile = tuple(lax.dynamic_slice_in_dim(x, start, tile) for x in candidates)
        filled = jnp.arange(max_output) < count
        alive = start + jnp.arange(tile) < num_valid
        alive &= ~(_overlap(of_tile, (kept_boxes, kept_groups), iou_threshold) & filled[None]).any(1)
        keep = _resolve(_overlap(of_tile, of_tile, iou_threshold), alive)
        place = jnp.where(keep, count + jnp.cumsum(keep) - 1, max_output)
        put = partial(_put, place)
        return (
            start + tile,
            jnp.minimum(count + keep.sum(), max_output),
            put(index, lax.dynamic_slice_in_dim(order_padded, start, tile)),
            put(kept_boxes, of_tile[0]),
            put(kept_groups, of_tile[1]),
        )

    state = (
        jnp.int32(0),
        jnp.int32(0),
        jnp.zeros(max_output, order.dtype),
        jnp.zeros((max_output, 4), boxes.dtype),
        jnp.zeros(max_output, jnp.int32),
    )
    _, count, index, *_ = bounded_loop(len(order_padded) // tile, unfinished, add_tile, state)
    return NMSResult(index, jnp.arange(max_output) < count)


def _put(place, array, values):
    return array.at[place].set(values, mode="drop")


def _overlap(a, b, iou_threshold):
    (boxes_a, groups_a), (boxes_b, groups_b) = a, b
    return (box_iou(boxes_a, boxes_b) > iou_threshold) & (groups_a[:, None] == groups_b[None, :])


def _resolve(overlaps: Bool[Array, "t t"], alive: Bool[Array, " t"]) -> Bool[Array, " t"]:
    """Return which boxes of a tile, in the order of scores, are kept.

    Every pass settles at least one more box from the front, so that the passes reach the only fixed point.
    """
    earlier = overlaps & (jnp.arange(len(alive))[None, :] < jnp.arange(len(alive))[:, None])

    def changed(state):
        return (state[0] != state[1]).any()

    def settle(state):
        keep, _ = state
        return alive & ~(earlier & keep[None, :]).any(1), keep

    return bounded_loop(len(alive), changed, settle, (settle((alive, alive))[0], alive))[0]
