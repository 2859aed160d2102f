"""Overlaps, deltas and anchors of boxes are those of mmdetection."""

import jax.numpy as jnp
import numpy as np
import pytest

from mambaout_jax.ops import box_area, box_iou, clip_boxes, decode_boxes, encode_boxes, make_anchors, valid_cells
from tests.models import dense_golden


def test_overlaps_are_counted_on_a_grid():
    """Boxes of integer coordinates are sets of pixels."""
    rng = np.random.default_rng(0)
    corners = np.sort(rng.integers(0, 12, (2, 20, 2, 2)), axis=2)
    a, b = (x.transpose(0, 1, 2).reshape(20, 4) for x in corners)
    pixels = np.zeros((2, 20, 12, 12), bool)
    for kind, boxes in enumerate((a, b)):
        for index, (x1, y1, x2, y2) in enumerate(boxes):
            pixels[kind, index, y1:y2, x1:x2] = True
    first, second = pixels[0][:, None], pixels[1][None]
    union = (first | second).sum((2, 3))
    expected = (first & second).sum((2, 3)) / np.maximum(union, 1)
    ours = box_iou(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    np.testing.assert_array_equal(box_area(jnp.asarray(a, jnp.float32)), pixels[0].sum((1, 2)))


@pytest.mark.parametrize("name", dense_golden.names("delta_coder__*"))
def test_offsets_are_those_of_mmdetection(name):
    case = dense_golden.load(name)
    stds = tuple(case.record["kwargs"]["target_stds"])
    inputs = {key: jnp.asarray(value) for key, value in case.inputs.items()}
    case.assert_close("outputs/deltas", encode_boxes(inputs["proposals"], inputs["gt"], stds))
    decoded = decode_boxes(inputs["rois"], inputs["deltas"], stds)
    case.assert_close("outputs/decoded_unclipped", decoded)
    size = jnp.array(case.record["max_shape"])
    case.assert_close("outputs/decoded", clip_boxes(decoded, size))
    per_class = inputs["deltas_per_class"].reshape(len(decoded), -1, 4)
    boxes = clip_boxes(decode_boxes(inputs["rois"][:, None], per_class, stds), size)
    case.assert_close("outputs/decoded_per_class", boxes.reshape(len(decoded), -1))


@pytest.mark.parametrize("name", dense_golden.names("anchors__*"))
def test_anchors_are_those_of_mmdetection(name):
    case = dense_golden.load(name)
    options = case.record["kwargs"]
    image = jnp.asarray(case.record["pad_shape"])[None]
    for level, (size, stride) in enumerate(zip(case.record["featmap_sizes"], options["strides"], strict=True)):
        anchors = make_anchors(tuple(size), stride, options["scales"][0], options["ratios"])
        case.assert_close(f"outputs/anchors{level}", anchors)
        inside = np.repeat(valid_cells(tuple(size), stride, image)[0].ravel(), len(options["ratios"]))
        np.testing.assert_array_equal(inside, case.outputs[f"valid{level}"])
