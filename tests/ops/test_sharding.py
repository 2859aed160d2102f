"""Every op has the same results, gradients and types on meshes with axes of any type."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from mambaout_jax import ops
from tests import meshes
from tests.marks import slow_but
from tests.meshes import LAYOUTS

BATCH = 8
EPS = 1e-5


def selective_scan(weights, rows, **options):
    A, *vectors = weights
    u, delta, B, C, *z = rows
    D, delta_bias = vectors or (None, None)
    return ops.selective_scan(u, delta, -jnp.exp(A), B, C, D, *z, delta_bias=delta_bias, **options)


def selective_scan_step(weights, rows):
    state, u, delta, B, C = rows
    return ops.selective_scan_step(state, u, delta, -jnp.exp(weights[0]), B, C, delta_softplus=True)


SEQUENCE = [(BATCH, 12, 8)] * 2


def gated_cnn_block(weights, rows, impl):
    (x,) = rows
    weights = ops.GatedCNNWeights(*(0.3 * weight for weight in weights))  # results of order 1, as in a model
    return ops.gated_cnn_block(x, weights, eps=EPS, dtype=jnp.float32, impl=impl)


PIXELS = ((0.1, 0.2, 0.3, 0.4), (1.0, 2.0, 3.0, 4.0))
# (function of lists of weights and rows, shapes of weights, shapes of rows), by the op and the case.
CASES = {
    "matmul": (lambda w, x: ops.matmul(*x, *w), [(8, 12)], [(BATCH, 5, 8)]),
    "gelu": (lambda w, x: ops.gelu(*x), [], [(BATCH, 5, 8)]),
    "layer_norm": (lambda w, x: ops.layer_norm(*x, *w, EPS), [(8,), (8,)], [(BATCH, 5, 8)]),
    "rms_norm": (lambda w, x: ops.rms_norm(*x, *w, EPS), [(8,)], [(BATCH, 5, 8)]),
    "batch_norm": (lambda w, x: ops.batch_norm(*x, *w, EPS)[0], [(8,), (8,)], [(BATCH, 5, 8)]),
    "normalize": (
        lambda w, x: ops.normalize(*x, w[0], jnp.exp(w[1]), *w[2:], EPS),
        [(8,), (8,), (8,), (8,)],
        [(BATCH, 5, 8)],
    ),
    "normalize_images": (lambda w, x: ops.normalize_images(*x, *PIXELS), [], [(BATCH, 5, 6, 4)]),
    "denormalize_images": (lambda w, x: ops.denormalize_images(*x, *PIXELS), [], [(BATCH, 5, 6, 4)]),
    **{
        f"depthwise_conv2d {impl}": (
            functools.partial(lambda w, x, impl: ops.depthwise_conv2d(*x, *w, impl=impl), impl=impl),
            [(3, 3, 1, 8)],
            [(BATCH, 6, 7, 8)],
        )
        for impl in ("auto", "lax", "shift", "pallas")
    },
    **{
        f"gated_cnn_block {impl}": (
            functools.partial(gated_cnn_block, impl=impl),
            [(8,), (8,), (8, 24), (24,), (3, 3, 1, 8), (8,), (12, 8), (8,), (8,)],
            [(BATCH, 3, 4, 8)],
        )
        for impl in ("auto", "xla", "pallas")
    },
    "conv2d": (
        lambda w, x: ops.conv2d(*x, *w, stride=(2, 1), padding=(1, 0)),
        [(3, 3, 8, 12)],
        [(BATCH, 6, 7, 8)],
    ),
    "conv2d groups": (
        lambda w, x: ops.conv2d(*x, *w, stride=(2, 1), padding=(1, 0), groups=4),
        [(3, 3, 2, 12)],
        [(BATCH, 6, 7, 8)],
    ),
    "strided_conv2d": (lambda w, x: ops.strided_conv2d(*x, *w, 2), [(3, 3, 8, 12)], [(BATCH, 6, 7, 8)]),
    "resize_bilinear": (lambda w, x: ops.resize_bilinear(*x, (9, 12)), [], [(BATCH, 3, 4, 8)]),
    "adaptive_avg_pool": (lambda w, x: ops.adaptive_avg_pool(*x, (2, 3)), [], [(BATCH, 3, 4, 8)]),
    "flatten_map": (lambda w, x: ops.flatten_map(*x, columns=True), [], [(BATCH, 3, 4, 8)]),
    "unflatten_map": (lambda w, x: ops.unflatten_map(*x, 3, 4, columns=True), [], [(BATCH, 12, 8)]),
    **{
        f"selective_scan {impl}": (
            functools.partial(selective_scan, delta_softplus=True, reverse=True, impl=impl),
            [(8, 4), (8,), (8,)],
            [*SEQUENCE, (BATCH, 12, 4), (BATCH, 12, 4), (BATCH, 12, 8)],
        )
        for impl in ops.SCAN_IMPLS
    },
    "selective_scan groups, last state": (
        functools.partial(selective_scan, delta_softplus=True, return_last_state=True),
        [(8, 4)],
        [*SEQUENCE, (BATCH, 12, 2, 4), (BATCH, 12, 2, 4)],
    ),
    "selective_scan_step": (
        selective_scan_step,
        [(8, 4)],
        [(BATCH, 8, 4), (BATCH, 8), (BATCH, 8), (BATCH, 4), (BATCH, 4)],
    ),
}
OTHER_IMPLS = ("lax", "shift", "xla", "pallas", "sequential", "associative", "chunked")
# Under `shard_map`, statistics are those of one device, and the interpreter of Pallas fails.
PER_DEVICE = {"batch_norm"}
# Sums over the batch in the forward pass: the mean and the variance.
FORWARD_SUMS = {"batch_norm": 2}
# XLA gathers the batch of a convolution whose groups have several channels each.
GATHERS = {"conv2d groups": {"all-gather"}}


def draw(case):
    function, *shapes = CASES[case]
    rng = np.random.default_rng(0)
    return function, *([rng.normal(size=shape).astype(np.float32) for shape in of_kind] for of_kind in shapes)


def compare(layout):
    cases = [case for case in CASES if layout != "shard_map" or not (case in PER_DEVICE or case.endswith("pallas"))]
    return {case: meshes.compare(layout, *draw(case)) for case in cases}


# Operations on boxes, which models and tasks call where all axes are Auto; tests/train/test_detection.py compares them
# on eight devices with one.
OF_BOXES = {
    "NMSResult", "assign_levels", "box_area", "box_intersection", "box_iou", "valid_cells", "clip_boxes", "crop_masks",
    "decode_boxes", "encode_boxes", "make_anchors", "nms", "roi_align",
}  # fmt: skip


NOT_OPS = {"GatedCNNWeights", "kernels", "use_kernels"}


def test_every_op_is_here():
    functions = {name for name in ops.__all__ if not name.isupper()}
    assert functions - OF_BOXES - NOT_OPS == {case.split()[0] for case in CASES}


@pytest.mark.parametrize("case", slow_but([case for case in CASES if not case.endswith(OTHER_IMPLS)], CASES))
@pytest.mark.parametrize("layout", meshes.TYPED)
def test_gradients_have_the_types_of_their_arguments(case, layout):
    meshes.check_types(layout, *draw(case))


@pytest.mark.run
@pytest.mark.parametrize("layout", slow_but(["explicit_model", "shard_map"], LAYOUTS, "nightly"))
def test_four_devices_equal_one(layout):
    found = meshes.on_four_devices("tests.ops.test_sharding", f"compare({layout!r})")
    for case, result in found.items():
        assert result["difference"] < 1e-5, (case, result)
        if LAYOUTS[layout].is_data_parallel:
            sums = len(CASES[case][1]) + FORWARD_SUMS.get(case, 0)
            assert result["collectives"].keys() <= {"all-reduce"} | GATHERS.get(case, set()), (case, result)
            assert result["collectives"].get("all-reduce", 0) <= sums, (case, result)


@pytest.mark.parametrize("layout", meshes.TYPED)
def test_programs_for_tpus_contain_the_kernels_on_every_mesh(layout):
    program = str(meshes.trace(layout, *draw("selective_scan auto"))[0])
    assert "selective_scan_forward" in program
    assert "selective_scan_backward" in program
