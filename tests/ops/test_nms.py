"""Suppression keeps the boxes that the greedy algorithm keeps."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mambaout_jax import ops
from mambaout_jax.ops import box_iou
from tests.models import dense_golden

nms = partial(jax.jit, static_argnames=("iou_threshold", "max_output"))(ops.nms)


def suppress(boxes, scores, threshold, valid, groups):
    """Visit all boxes in the order of scores, one by one."""
    overlap = np.asarray(box_iou(jnp.asarray(boxes), jnp.asarray(boxes)))
    kept = []
    for index in np.argsort(-scores, kind="stable"):
        if valid[index] and not any(overlap[index, k] > threshold and groups[index] == groups[k] for k in kept):
            kept.append(index)
    return kept


def draw(seed, n):
    """Draw boxes that often overlap, with few different scores."""
    rng = np.random.default_rng(seed)
    corner, sides = rng.uniform(0, 60, (n, 2)), rng.uniform(0, 40, (n, 2))
    boxes = np.concatenate([corner, corner + sides], 1).astype(np.float32)
    return boxes, rng.integers(0, 9, n).astype(np.float32) / 9, rng.random(n) < 0.9, rng.integers(0, 3, n)


@pytest.mark.parametrize("n", [1, 40, 700])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7])
def test_kept_boxes_are_those_of_the_greedy_algorithm(n, threshold):
    boxes, scores, valid, groups = draw(n, n)
    expected = suppress(boxes, scores, threshold, valid, groups)
    for most in (5, n):
        kept = nms(
            jnp.asarray(boxes),
            jnp.asarray(scores),
            iou_threshold=threshold,
            max_output=most,
            valid=jnp.asarray(valid),
            groups=jnp.asarray(groups),
        )
        assert np.asarray(kept.index)[np.asarray(kept.valid)].tolist() == expected[:most]


def test_rows_are_suppressed_alone():
    drawn = [draw(seed, 300) for seed in range(3)]
    boxes, scores = (jnp.asarray(np.stack(part)) for part in list(zip(*drawn, strict=True))[:2])

    def run(boxes, scores):
        return nms(boxes, scores, iou_threshold=0.5, max_output=50)

    together = jax.vmap(run)(boxes, scores)
    for row in range(3):
        alone = run(boxes[row], scores[row])
        np.testing.assert_array_equal(together.index[row], alone.index)
        np.testing.assert_array_equal(together.valid[row], alone.valid)


def test_nothing_valid_keeps_nothing():
    boxes, scores, _, _ = draw(0, 10)
    kept = nms(jnp.asarray(boxes), jnp.asarray(scores), iou_threshold=0.5, max_output=4, valid=jnp.zeros(10, bool))
    assert not kept.valid.any()


def test_no_boxes_keep_nothing():
    kept = nms(jnp.zeros((0, 4)), jnp.zeros(0), iou_threshold=0.5, max_output=4)
    assert kept.index.shape == (4,)
    assert not kept.valid.any()


@pytest.mark.parametrize("name", dense_golden.names("nms__*"))
def test_kept_boxes_are_those_of_mmcv(name):
    case = dense_golden.load(name)
    boxes, scores, keep = case.inputs["boxes"], case.inputs["scores"], case.outputs["keep"]
    groups = case.inputs.get("idxs", np.zeros(len(boxes), int))
    # mmcv visits equal scores in an order that is not that of the input: move the boxes that it keeps to the front.
    order = np.concatenate([keep, np.setdiff1d(np.arange(len(boxes)), keep)])
    if len(np.unique(scores)) == len(scores):
        order = np.arange(len(boxes))
    kept = nms(
        jnp.asarray(boxes[order]),
        jnp.asarray(scores[order]),
        iou_threshold=case.record["iou_threshold"],
        max_output=len(boxes),
        groups=jnp.asarray(groups[order]),
    )
    index = order[np.asarray(kept.index)[np.asarray(kept.valid)]]
    np.testing.assert_array_equal(index, keep)
    case.assert_close("outputs/dets", np.concatenate([boxes[index], scores[index, None]], 1))
