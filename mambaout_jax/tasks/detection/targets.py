"""The targets of boxes in training: assignment to objects by IoU, and random sampling.

Reference: Ren et al., Faster R-CNN, 2015; thresholds, ties and numbers of samples of mmdetection 3.3.0
(`MaxIoUAssigner`, `RandomSampler`).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from mambaout_jax.ops import box_iou
from mambaout_jax.ops.sharding import map_rows

# Values of an assignment that are not the index of an object.
BACKGROUND, IGNORED = -1, -2


class IoUThresholds(NamedTuple):
    """Which IoUs with ground-truth boxes make a box positive or negative.

    Args:
        pos_iou: a box with at least this IoU is positive for the object with which it has the highest IoU.
        neg_iou: a box whose highest IoU is below this is negative; between the two it is ignored.
        min_pos_iou: the boxes with the highest IoU of an object are positive if that IoU is at least this ("low-quality
            matching").
    """

    pos_iou: float
    neg_iou: float
    min_pos_iou: float


PROPOSAL_THRESHOLDS = IoUThresholds(0.7, 0.3, 0.3)
# Low-quality matching changes nothing from 0.5 on, except for objects with equal boxes.
DETECTION_THRESHOLDS = IoUThresholds(0.5, 0.5, 0.5)


class SampleSizes(NamedTuple):
    """The number of samples of an image, and the largest number of positive ones among them."""

    num_samples: int
    max_positives: int


class Samples(NamedTuple):
    """Sampled boxes of an image: positive ones, then negative ones.

    Args:
        index: of the boxes.
        gt_index: index of the object of each box; 0 for negative ones.
        is_positive: whether the box is assigned to an object.
        valid: false for padding.
    """

    index: Int[Array, "*b n"]
    gt_index: Int[Array, "*b n"]
    is_positive: Bool[Array, "*b n"]
    valid: Bool[Array, "*b n"]


def assign(
    boxes: Float[Array, "b n 4"],
    valid: Bool[Array, "b n"],
    gt_boxes: Float[Array, "b m 4"],
    gt_valid: Bool[Array, "b m"],
    thresholds: IoUThresholds,
) -> Int[Array, "b n"]:
    """Return the index of the object of each box, `BACKGROUND` or `IGNORED`, of every image.

    A box is assigned to the object with which it has the highest IoU, the first one of equals. Then low-quality
    matching assigns the boxes with the highest IoU of each object to it, even if they were assigned to an earlier one.

    Args:
        valid: boxes that take part; others are `IGNORED`.
        gt_valid: entries of `gt_boxes` that are not padding.
    """
    return map_rows(jax.vmap(partial(_assign_image, thresholds)), boxes, valid, gt_boxes, gt_valid)


def _assign_image(thresholds, boxes, valid, gt_boxes, gt_valid):
    # One object at a time: an array of all overlaps would be the largest of the program.
    def add(state, row):
        best, chosen, taken = state
        index, box, is_present = row
        overlap = box_iou(boxes, box[None])[:, 0]
        # Compared with its own maximum below, which must not be that of values with other rounding errors.
        overlap = lax.optimization_barrier(jnp.where(valid & is_present, overlap, -1.0))
        most = overlap.max()
        better = overlap > best
        is_best = (overlap == most) & (most >= thresholds.min_pos_iou) & valid
        return (
            jnp.where(better, overlap, best),
            jnp.where(better, index, chosen),
            jnp.where(is_best, index, taken),
        ), None

    none = jnp.full(valid.shape, -1, jnp.int32)
    rows = jnp.arange(len(gt_boxes), dtype=jnp.int32), gt_boxes, gt_valid
    (best, chosen, taken), _ = lax.scan(add, (jnp.full(valid.shape, -1.0), none, none), rows)
    assigned = jnp.where(best < thresholds.neg_iou, BACKGROUND, IGNORED)
    assigned = jnp.where(best >= thresholds.pos_iou, chosen, assigned)
    assigned = jnp.where(taken >= 0, taken, assigned)
    return jnp.where(valid, assigned, IGNORED)


def sample(assigned: Int[Array, "b n"], sizes: SampleSizes, key: Key[Array, ""]) -> Samples:
    """Draw positive and negative boxes without replacement, of every image.

    If there are few positive boxes, more negative ones are drawn.
    """
    order = jax.random.uniform(key, assigned.shape)
    return map_rows(jax.vmap(partial(_sample_image, sizes)), assigned, order)


def _sample_image(sizes, assigned, order):
    # Positive boxes, if not too many, have a higher priority than all negative ones.
    priority = jnp.where(assigned == BACKGROUND, order, -1.0)
    _, first = lax.top_k(jnp.where(assigned >= 0, order, -1.0), min(sizes.max_positives, len(order)))
    chosen = jnp.take(assigned, first) >= 0
    priority = priority.at[first].add(jnp.where(chosen, 3.0, 0.0))
    value, index = lax.top_k(priority, min(sizes.num_samples, len(order)))
    is_positive = value >= 1
    return Samples(index, jnp.where(is_positive, jnp.take(assigned, index), 0), is_positive, value >= 0)
