"""Which boxes are compared with which objects in training: assignment by overlap, and random samples.

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


class Thresholds(NamedTuple):
    """How much boxes overlap objects and the background, as intersections over union.

    Args:
        object: from which on a box belongs to the object that it overlaps most.
        background: below which a box belongs to the background; between the two it is ignored.
        best: from which on the boxes that an object has in common with no better box belong to it.
    """

    object: float
    background: float
    best: float


PROPOSAL_THRESHOLDS = Thresholds(0.7, 0.3, 0.3)
# A best overlap from 0.5 on already belongs to the object that the box overlaps most.
DETECTION_THRESHOLDS = Thresholds(0.5, 0.5, 0.5)


class SampleSizes(NamedTuple):
    """The number of samples of an image, and how many of them may be objects."""

    total: int
    objects: int


class Samples(NamedTuple):
    """Sampled boxes of an image: those of objects, then those of the background.

    Args:
        index: of the boxes.
        objects: index of the object of each box; 0 for the background.
        is_object: whether the box belongs to an object.
        valid: false for padding.
    """

    index: Int[Array, "*b n"]
    objects: Int[Array, "*b n"]
    is_object: Bool[Array, "*b n"]
    valid: Bool[Array, "*b n"]


def assign(
    boxes: Float[Array, "b n 4"],
    valid: Bool[Array, "b n"],
    objects: Float[Array, "b m 4"],
    present: Bool[Array, "b m"],
    thresholds: Thresholds,
) -> Int[Array, "b n"]:
    """Return the object of each box, `BACKGROUND` or `IGNORED`, of every image.

    A box belongs to the object that it overlaps most, if by enough; of equal overlaps, to the first. Then every object
    takes all valid boxes that overlap it most, even from an earlier object.

    Args:
        valid: boxes that take part; others are `IGNORED`.
        present: entries of `objects` that are not padding.
    """
    return map_rows(jax.vmap(partial(_assign_image, thresholds)), boxes, valid, objects, present)


def _assign_image(thresholds, boxes, valid, objects, present):
    # One object at a time: an array of all overlaps would be the largest of the program.
    def add(state, row):
        best, chosen, taken = state
        index, box, is_present = row
        overlap = box_iou(boxes, box[None])[:, 0]
        # Compared with its own maximum below, which must not be that of values with other rounding errors.
        overlap = lax.optimization_barrier(jnp.where(valid & is_present, overlap, -1.0))
        most = overlap.max()
        better = overlap > best
        is_best = (overlap == most) & (most >= thresholds.best) & valid
        return (
            jnp.where(better, overlap, best),
            jnp.where(better, index, chosen),
            jnp.where(is_best, index, taken),
        ), None

    none = jnp.full(valid.shape, -1, jnp.int32)
    rows = jnp.arange(len(objects), dtype=jnp.int32), objects, present
    (best, chosen, taken), _ = lax.scan(add, (jnp.full(valid.shape, -1.0), none, none), rows)
    assigned = jnp.where(best < thresholds.background, BACKGROUND, IGNORED)
    assigned = jnp.where(best >= thresholds.object, chosen, assigned)
    assigned = jnp.where(taken >= 0, taken, assigned)
    return jnp.where(valid, assigned, IGNORED)


def sample(assigned: Int[Array, "b n"], sizes: SampleSizes, key: Key[Array, ""]) -> Samples:
    """Draw boxes of objects and of the background without replacement, of every image.

    If there are few boxes of objects, there are more of the background.
    """
    order = jax.random.uniform(key, assigned.shape)
    return map_rows(jax.vmap(partial(_sample_image, sizes)), assigned, order)


def _sample_image(sizes, assigned, order):
    # Boxes of objects in a random order, except for those beyond their number, are before the background.
    priority = jnp.where(assigned == BACKGROUND, order, -1.0)
    _, first = lax.top_k(jnp.where(assigned >= 0, order, -1.0), min(sizes.objects, len(order)))
    chosen = jnp.take(assigned, first) >= 0
    priority = priority.at[first].add(jnp.where(chosen, 3.0, 0.0))
    value, index = lax.top_k(priority, min(sizes.total, len(order)))
    is_object = value >= 1
    return Samples(index, jnp.where(is_object, jnp.take(assigned, index), 0), is_object, value >= 0)
