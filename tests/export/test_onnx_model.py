"""onnxruntime computes what JAX computes, for every family and for every operation that is translated."""

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from jax import lax

import mambaout_jax as mo
from mambaout_jax.export.errors import ExportError
from mambaout_jax.export.onnx_model import to_onnx
from mambaout_jax.ops import depthwise_conv2d, layer_norm, nms, resize_bilinear, roi_align, selective_scan
from mambaout_jax.ops.activations import gelu
from tests.models import golden
from tests.models.test_families import small, small_models_by_tier, variables_of

SHAPE = (8, 6, 4)


def translate(function, shape=SHAPE):
    return to_onnx(
        lambda x: {"y": function(x)}, jax.ShapeDtypeStruct(shape, jnp.float32), input_name="x", description=""
    )


def draw(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def run(proto, x):
    onnx.checker.check_model(proto, full_check=True)
    return onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": x})[0]


def assert_close(found, expected, relative):
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    largest = np.abs(np.asarray(expected, np.float64)).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=relative * largest)


KERNEL = draw(3, 3, 4, 6)
FUNCTIONS = {
    "elements": lambda x: jnp.sign(jnp.tanh(x)) * jnp.sqrt(jnp.abs(x)) + jnp.exp(-jnp.square(x)) - jnp.log1p(x**2) / 3,
    "powers": lambda x: x**3 + jnp.power(jnp.abs(x), 0.3) + lax.rsqrt(jnp.abs(x) + 1) + jnp.log2(jnp.abs(x) + 1),
    "comparisons": lambda x: jnp.where((x > 0) & (x < 1) | ~(x <= 2), x, jnp.maximum(x, -1)),
    "rounding": lambda x: jnp.floor(x) + jnp.ceil(2 * x) + jnp.clip(x, -0.5, 0.5) + jnp.round(jnp.floor(4 * x) / 2),
    "activations": lambda x: gelu(x) + jax.nn.silu(x) + jax.nn.softplus(x) + jax.nn.relu(x) + jax.nn.sigmoid(x),
    "softmax": lambda x: jax.nn.softmax(x, axis=2),
    "reductions": lambda x: x.sum((1, 2)) + x.max((1, 2)) + x.min((1, 2)) - x.mean((1, 2)),
    "argmax": lambda x: x.argmax(-1),
    "any and all": lambda x: (x > 0).any(1) & (x > -2).all((1, 2))[:, None],
    "largest": lambda x: jnp.concatenate([part.astype(x.dtype) for part in lax.top_k(jnp.round(jnp.abs(x)), 3)], -1),
    "elements of each image": lambda x: jnp.take_along_axis(
        x.reshape(x.shape[0], 48, 4), jnp.argmax(x, 1)[:, :, :1], axis=1
    ),
    "sums": lambda x: jnp.cumsum(x, 1) + jnp.cumsum(x[:, ::-1], 2),
    "booleans": lambda x: jnp.where(x > 1, x < 2, x > 0),
    "broadcasts": lambda x: jnp.broadcast_to(x[:, :1], x.shape) + jnp.arange(4)[None, None, None],
    "joined broadcasts": lambda x: jnp.concatenate([x, jnp.broadcast_to(jnp.arange(4.0), x.shape)], 1),
    "parts": lambda x: jnp.concatenate([x[:, 1:7:2], jnp.flip(x, 3), x[:, 5, None], *jnp.split(x, 2, 1)], 1),
    "stacks": lambda x: jnp.stack([x, x + 1], 2).reshape(x.shape[0], -1),
    "tiles": lambda x: jnp.tile(x, (1, 2, 1, 3)) + jnp.repeat(jnp.repeat(x, 2, 1), 3, 3),
    "selections": lambda x: jnp.take(x[:, np.array([3, 1, 1])], jnp.array([[0, 2], [1, 1]]), axis=3),
    "whole range": lambda x: lax.slice_p.bind(x, start_indices=(0,) * 4, limit_indices=x.shape, strides=None),
    "ranges": lambda x: lax.slice_in_dim(x, 2, 5, axis=1) + x[:, :3],
    "padding": lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 3), (0, 0)), constant_values=2.0),
    "axes": lambda x: x.transpose(0, 3, 1, 2)[:, :, None].squeeze(2),
    "products": lambda x: x @ draw(4, 5) + jnp.einsum("bhwc,dc->bhwd", x, draw(5, 4)),
    "products of maps": lambda x: jnp.einsum("bhwc,bhvc->bwv", x, x) * jnp.einsum("bhwc,bvwc->bw", x, x)[:, :, None],
    "product from the left": lambda x: jnp.einsum("yh,bhwc->bywc", draw(3, 8), x),
    "convolution": lambda x: lax.conv_general_dilated(
        x, KERNEL, (2, 1), [(1, 0), (2, 2)], rhs_dilation=(1, 2), dimension_numbers=("NHWC", "HWIO", "NHWC")
    ),
    "depthwise": lambda x: depthwise_conv2d(x, jnp.asarray(draw(5, 5, 1, 4))),
    "maximum of windows": lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 2, 1), (1, 2, 2, 1), "VALID"),
    "sum of windows": lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 3, 2, 1), (1, 2, 1, 1), "SAME"),
    "norm": lambda x: layer_norm(x, jnp.asarray(draw(4)), jnp.asarray(draw(4)), 1e-3),
    "larger maps": lambda x: resize_bilinear(x, (16, 9)),
    "loop": lambda x: lax.scan(lambda c, row: (0.5 * c + row, c.sum(-1)), x[:, 0], x.swapaxes(0, 1))[1],
    "reversed loop": lambda x: lax.scan(lambda c, row: (c * row, c), x[:, 0], x.swapaxes(0, 1), reverse=True)[1],
    "scan": lambda x: selective_scan(
        x[:, :, 0], jnp.abs(x[:, :, 1]), -jnp.exp(jnp.asarray(draw(4, 3))), x[:, :, 2, :3], x[:, :, 3, :3], reverse=True
    ),
    "types": lambda x: (x > 0).astype(jnp.int32) + jnp.floor(x).astype(jnp.int32),
    "constants": lambda x: x * jnp.linalg.norm(jnp.asarray(draw(4, 4)), axis=0)[None, None, None],
}  # fmt: skip


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_operations_are_those_of_jax(name, batch):
    function, x = FUNCTIONS[name], draw(batch, *SHAPE)
    assert_close(run(translate(function), x), np.asarray(function(jnp.asarray(x))), 2e-6)


@pytest.mark.parametrize(
    ("function", "word"),
    [
        (lambda x: jnp.sort(x, 1), "sort"),
        (lambda x: lax.while_loop(lambda c: c.sum() < 9, lambda c: c + 1, x), "while"),
        (lambda x: nms(x.sum((0, 1)), x.sum((0, 1, 3)), iou_threshold=0.5, max_output=2).index, "single image"),
        (lambda x: lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x), "condition"),
        (lambda x: lax.pad(x, 0.0, [(0, 0, 0), (0, 0, 1), (0, 0, 0), (0, 0, 0)]), "between"),
    ],
)
def test_an_operation_without_a_translation_is_named(function, word):
    with pytest.raises(ExportError, match=word):
        translate(function)


@small_models_by_tier
def test_models_compute_the_same(name):
    model, variables = small(name), variables_of(name)
    x = draw(3, *model.input_spec.size, 3)
    proto = translate(lambda x: model.apply(variables, x), x.shape[1:])
    expected = np.asarray(jax.jit(model.apply)(variables, x))
    assert_close(run(proto, x), expected, 1e-5)
    assert_close(run(proto, x[1:2]), expected[1:2], 1e-5)


def boxes_of(x):
    """Return 48 boxes for each image."""
    corners = 10 * x.reshape(x.shape[0], 48, 4)
    return jnp.concatenate([corners[..., :2], corners[..., :2] + jnp.abs(corners[..., 2:]) + 4], axis=-1)


@pytest.mark.parametrize("max_output", [5, 60])
@pytest.mark.parametrize("num_groups", [1, 3])
@pytest.mark.parametrize("batch", [1, 3])
def test_suppression_is_the_operator_of_onnx(batch, num_groups, max_output):
    """Equal scores, boxes that take no part, and results with padding give the same boxes in the same order."""
    groups = jnp.arange(48) % num_groups

    def keep(x):
        boxes = boxes_of(x)

        def of_image(boxes):
            scores, valid = jnp.round(jnp.sin(boxes[:, 0]), 1), boxes[:, 1] < 8
            return nms(boxes, scores, iou_threshold=0.3, max_output=max_output, valid=valid, groups=groups)

        found = jax.vmap(of_image)(boxes)
        return jnp.where(found.valid, found.index, -1)

    proto, x = translate(keep), draw(batch, *SHAPE)
    assert sum(node.op_type == "NonMaxSuppression" for node in proto.graph.node) == 1
    np.testing.assert_array_equal(run(proto, x), jax.jit(keep)(x))


@pytest.mark.slow
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_features_of_boxes_are_gathered(sampling_ratio):
    def align(x):
        boxes = boxes_of(x)[:, :9]
        maps, levels = [x, x[:, :4, :3]], (jnp.abs(boxes[..., 0]) > 7).astype(jnp.int32)
        return roi_align(maps, boxes, levels, strides=(4, 8), output_size=3, sampling_ratio=sampling_ratio)

    proto, x = translate(align), draw(2, *SHAPE)
    assert_close(run(proto, x), jax.jit(align)(x), 1e-6)


@pytest.mark.slow
def test_norms_activations_and_convolutions_are_one_node_each():
    model = mo.create_model("mambaout_femto")
    variables = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), model.shapes)
    nodes = translate(lambda x: model.apply(variables, x), (224, 224, 3)).graph.node
    count = {
        kind: sum(node.op_type == kind for node in nodes) for kind in ("LayerNormalization", "Gelu", "Conv", "Erf")
    }
    assert count == {"LayerNormalization": 25, "Gelu": 38, "Conv": 23, "Erf": 0}
    assert len(nodes) < 700


def test_every_family_is_translated():
    translated = {name.partition("-")[0] for name in golden.first_small_models()}
    assert translated == {family.name for family in mo.models.families()}
