"""RoIAlign computes what mmcv's does, forward and backward, and what its definition says."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mambaout_jax import ops
from mambaout_jax.ops import assign_levels
from tests.models import dense_golden

roi_align = partial(jax.jit, static_argnames=("strides", "output_size", "sampling_ratio", "max_sampling_ratio"))(
    ops.roi_align
)
crop_masks = partial(jax.jit, static_argnames="output_size")(ops.crop_masks)


def align_by_definition(x, box, stride, bins, samples):
    """Sample one box of one map (h, w, c) point by point."""
    height, width = x.shape[:2]
    (x1, y1, x2, y2), y = np.float64(box) / stride, np.zeros((bins, bins, x.shape[2]))
    numbers = [samples or max(math.ceil(side / bins), 0) for side in (y2 - y1, x2 - x1)]
    for i, j in np.ndindex(bins, bins):
        for k, m in np.ndindex(*numbers):
            row = y1 - 0.5 + (i + (k + 0.5) / numbers[0]) * (y2 - y1) / bins
            column = x1 - 0.5 + (j + (m + 0.5) / numbers[1]) * (x2 - x1) / bins
            if not (-1 <= row <= height and -1 <= column <= width):
                continue
            row, column = (min(max(at, 0), side - 1) for at, side in ((row, height), (column, width)))
            top, left = int(row), int(column)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            down, along = row - top, column - left
            upper = x[top, left] * (1 - along) + x[top, right] * along
            lower = x[bottom, left] * (1 - along) + x[bottom, right] * along
            y[i, j] += (upper * (1 - down) + lower * down) / math.prod(numbers)
    return y


def draw(seed, shape):
    return jax.random.normal(jax.random.key(seed), shape)


BOXES = [[3, 2, 40, 30], [-20, -5, 8, 70], [10.3, 5.5, 10.9, 6.2], [30, 10, 90, 12], [5, 5, 5, 5], [200, 0, 210, 9]]


@pytest.mark.parametrize("samples", [0, 1, 2, 3])
@pytest.mark.parametrize("bins", [1, 4])
def test_samples_are_means_of_interpolated_values(samples, bins):
    x, boxes = draw(0, (1, 9, 13, 2)), jnp.array([BOXES], jnp.float32)
    ours = roi_align(
        [x],
        boxes,
        jnp.zeros((1, len(BOXES)), int),
        strides=(4,),
        output_size=bins,
        sampling_ratio=samples,
        max_sampling_ratio=24,
    )
    for features, box in zip(ours[0], BOXES, strict=True):
        np.testing.assert_allclose(features, align_by_definition(x[0], box, 4, bins, samples), atol=1e-5)


def test_larger_bins_than_the_limit_are_means_of_their_cells():
    """On a map that changes linearly, the mean of the cells of a bin is the value at its center."""
    rows, columns = jnp.meshgrid(jnp.arange(64.0), jnp.arange(64.0), indexing="ij")
    x = jnp.stack([rows, columns], -1)[None]
    box = jnp.array([[[0, 0, 256, 256]]], jnp.float32)
    ours = roi_align(
        [x], box, jnp.zeros((1, 1), int), strides=(4,), output_size=2, sampling_ratio=0, max_sampling_ratio=7
    )
    exact = align_by_definition(np.asarray(x[0]), box[0, 0], 4, 2, 0)
    np.testing.assert_allclose(ours[0, 0], exact, atol=0.5)


@pytest.mark.parametrize("name", dense_golden.names("roi_align__*"))
def test_outputs_and_gradients_are_those_of_mmcv(name):
    case = dense_golden.load(name)
    options = case.record["kwargs"]
    maps, rois = jnp.asarray(case.inputs["feat"].transpose(0, 2, 3, 1)), case.inputs["rois"]
    bins = options["output_size"][0]
    images = rois[:, 0].astype(int)
    # The boxes of each image, padded to one number.
    most = np.bincount(images).max()
    boxes, place = np.zeros((len(maps), most, 4), np.float32), np.zeros(len(rois), int)
    for index, image in enumerate(images):
        place[index] = (images[:index] == image).sum()
        boxes[image, place[index]] = rois[index, 1:]

    def compute(x):
        found = roi_align(
            [x],
            jnp.asarray(boxes),
            jnp.zeros(boxes.shape[:2], int),
            strides=(round(1 / options["spatial_scale"]),),
            output_size=bins,
            sampling_ratio=options["sampling_ratio"],
            max_sampling_ratio=12,
        )
        return found[images, place].transpose(0, 3, 1, 2)

    features, transpose = jax.vjp(compute, maps)
    case.assert_close("outputs/rois_feat", features)
    gradient = transpose(jnp.asarray(case.inputs["cotangent"]))[0]
    case.assert_close("grads/inputs/feat", gradient.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("name", dense_golden.names("roi_extractor__*"))
def test_boxes_are_on_the_levels_of_mmdetection(name):
    case = dense_golden.load(name)
    options = case.record["kwargs"]
    np.testing.assert_array_equal(
        assign_levels(jnp.asarray(case.inputs["level_rois"][:, 1:]), 4), case.outputs["levels"]
    )
    maps, rois = dense_golden.maps(case.inputs, "feat"), case.inputs["rois"]
    images, boxes = rois[:, 0].astype(int), jnp.asarray(np.stack([rois[:, 1:]] * 2))

    def compute(maps):
        found = roi_align(
            maps,
            boxes,
            assign_levels(boxes, len(maps)),
            strides=tuple(options["featmap_strides"]),
            output_size=options["roi_layer"]["output_size"],
            sampling_ratio=0,
        )
        return found[images, np.arange(len(rois))].transpose(0, 3, 1, 2)

    features, transpose = jax.vjp(compute, [jnp.asarray(x) for x in maps])
    case.assert_close("outputs/rois_feat", features)
    for level, gradient in enumerate(transpose(jnp.asarray(case.inputs["cotangent"]))[0]):
        case.assert_close(f"grads/inputs/feat{level}", gradient.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("samples", [0, 2])
def test_no_boxes_have_no_features_and_no_gradient(samples):
    def align(x):
        boxes, levels = jnp.zeros((1, 0, 4)), jnp.zeros((1, 0), jnp.int32)
        return roi_align([x], boxes, levels, strides=(4,), output_size=3, sampling_ratio=samples)

    features, transpose = jax.vjp(align, jnp.ones((1, 5, 6, 2)))
    assert features.shape == (1, 0, 3, 3, 2)
    assert not transpose(features)[0].any()


def test_bfloat16_maps_are_interpolated_in_float32():
    x, boxes = draw(1, (2, 8, 8, 3)), jnp.array([BOXES[:3]] * 2, jnp.float32)
    rounded = x.astype(jnp.bfloat16)
    ours, exact = (
        roi_align([x], boxes, jnp.zeros((2, 3), int), strides=(4,), output_size=3)
        for x in (rounded, rounded.astype(jnp.float32))
    )
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_array_equal(ours, exact.astype(jnp.bfloat16))


def test_masks_are_cropped_as_maps_of_one_channel():
    masks, boxes = draw(2, (5, 30, 20)), jnp.array(BOXES[:5], jnp.float32) / 3
    ours = crop_masks(masks, boxes, output_size=7)
    expected = roi_align(
        [masks[..., None]], boxes[:, None], jnp.zeros((5, 1), int), strides=(1,), output_size=7, sampling_ratio=0
    )
    np.testing.assert_allclose(ours, expected[:, 0, ..., 0], atol=1e-5)
