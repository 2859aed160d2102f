"""Time non-maximum suppression and RoIAlign on CPU, alternating with the operators of onnxruntime.

python benchmarks/detection.py [--rounds 20]

NMS of 2,000 boxes (threshold 0.7, all kept ones returned), and RoIAlign of 512 boxes with 7x7 bins on four maps of 256
channels of an image of 800x1344, with two samples per bin and axis. onnxruntime has both operators, but RoIAlign on one
map only, so that it runs once per level on the boxes of that level, and no gradient. Compare medians and ratios.
"""

import argparse
import statistics
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from mambaout_jax.ops import assign_levels, nms, roi_align

IMAGE, STRIDES, CHANNELS = (800, 1344), (4, 8, 16, 32), 256
NUM_BOXES, NUM_ROIS, BINS, SAMPLES, THRESHOLD = 2000, 512, 7, 2, 0.7


def draw_boxes(rng, count):
    """Draw boxes of objects' sizes and shapes, many of which overlap."""
    side, shape = np.exp(rng.uniform(np.log(20), np.log(600), count)), np.exp(rng.normal(0, 0.4, count))
    width, height = np.minimum(side * shape, IMAGE[1] - 1), np.minimum(side / shape, IMAGE[0] - 1)
    x, y = rng.uniform(0, IMAGE[1] - width), rng.uniform(0, IMAGE[0] - height)
    return np.stack([x, y, x + width, y + height], 1).astype(np.float32)


def session(node, inputs, output, constants=()):
    """Return an onnxruntime session of one operator, on all cores."""
    graph = helper.make_graph(
        [node],
        "operator",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [helper.make_tensor_value_info(*output)],
        list(constants),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8)
    onnx.checker.check_model(model)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def onnx_nms():
    """Return onnxruntime's suppression, a function of boxes and scores."""
    node = helper.make_node("NonMaxSuppression", ["boxes", "scores", "most", "iou"], ["kept"])
    constants = [
        helper.make_tensor("most", TensorProto.INT64, [], [NUM_BOXES]),
        helper.make_tensor("iou", TensorProto.FLOAT, [], [THRESHOLD]),
    ]
    inputs = [("boxes", TensorProto.FLOAT, [1, NUM_BOXES, 4]), ("scores", TensorProto.FLOAT, [1, 1, NUM_BOXES])]
    run = session(node, inputs, ("kept", TensorProto.INT64, ["n", 3]), constants).run
    return lambda boxes, scores: run(None, {"boxes": boxes[None], "scores": scores[None, None]})[0][:, 2]


def onnx_roi_align(stride):
    """Return onnxruntime's RoIAlign for a map of a stride, a function of the map and boxes."""
    node = helper.make_node(
        "RoiAlign",
        ["x", "rois", "images"],
        ["y"],
        mode="avg",
        output_height=BINS,
        output_width=BINS,
        sampling_ratio=SAMPLES,
        spatial_scale=1 / stride,
        coordinate_transformation_mode="half_pixel",
    )
    height, width = (-(-side // stride) for side in IMAGE)
    inputs = [
        ("x", TensorProto.FLOAT, [1, CHANNELS, height, width]),
        ("rois", TensorProto.FLOAT, ["n", 4]),
        ("images", TensorProto.INT64, ["n"]),
    ]
    run = session(node, inputs, ("y", TensorProto.FLOAT, ["n", CHANNELS, BINS, BINS])).run
    return lambda x, rois: run(None, {"x": x, "rois": rois, "images": np.zeros(len(rois), np.int64)})[0]


def time_in_turn(functions, rounds):
    """Return the median time of each function in ms, each called once per round."""
    times = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def main():
    """Check that both sides agree, and print times and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    rng = np.random.default_rng(0)

    boxes, scores = draw_boxes(rng, NUM_BOXES), rng.random(NUM_BOXES, np.float32)
    ours_nms = jax.jit(partial(nms, iou_threshold=THRESHOLD, max_output=NUM_BOXES))
    theirs_nms = onnx_nms()
    given = jnp.asarray(boxes), jnp.asarray(scores)
    kept = ours_nms(*given)
    np.testing.assert_array_equal(np.asarray(kept.index)[np.asarray(kept.valid)], theirs_nms(boxes, scores))

    rois = draw_boxes(rng, NUM_ROIS)
    maps = [
        rng.normal(size=(1, *(-(-side // stride) for side in IMAGE), CHANNELS)).astype(np.float32) for stride in STRIDES
    ]
    levels = np.asarray(assign_levels(jnp.asarray(rois), len(STRIDES)))
    align = partial(roi_align, strides=STRIDES, output_size=BINS, sampling_ratio=SAMPLES)
    inputs = [jnp.asarray(x) for x in maps], jnp.asarray(rois)[None], jnp.asarray(levels)[None]
    ours_align = jax.jit(align)
    cotangent = jnp.asarray(rng.normal(size=(1, NUM_ROIS, BINS, BINS, CHANNELS)).astype(np.float32))
    gradient = jax.jit(lambda maps, *rest: jax.vjp(lambda maps: align(maps, *rest), maps)[1](cotangent)[0])
    temporary = max(
        function.lower(*inputs).compile().memory_analysis().temp_size_in_bytes for function in (ours_align, gradient)
    )
    theirs = [onnx_roi_align(stride) for stride in STRIDES]
    channels_first = [np.ascontiguousarray(x.transpose(0, 3, 1, 2)) for x in maps]
    of_level = [np.flatnonzero(levels == level) for level in range(len(STRIDES))]

    def theirs_align():
        return [run(x, rois[rows]) for run, x, rows in zip(theirs, channels_first, of_level, strict=True)]

    found = np.asarray(ours_align(*inputs)[0]).transpose(0, 3, 1, 2)
    for rows, expected in zip(of_level, theirs_align(), strict=True):
        np.testing.assert_allclose(found[rows], expected, atol=1e-4)

    jax.block_until_ready(gradient(*inputs))
    medians = time_in_turn(
        {
            "nms": lambda: ours_nms(*given),
            "nms, onnxruntime": lambda: theirs_nms(boxes, scores),
            "roi_align": lambda: ours_align(*inputs),
            "roi_align, onnxruntime": theirs_align,
            "roi_align, gradient": lambda: gradient(*inputs),
        },
        args.rounds,
    )
    for name, value in medians.items():
        print(f"{name:24} {value:8.2f} ms")
    for name in ("nms", "roi_align"):
        ratio = medians[f"{name}, onnxruntime"] / medians[name]
        print(f"{name}: {ratio:.2f}x the speed of onnxruntime {onnxruntime.__version__}")
    print(
        f"kept boxes: {int(kept.valid.sum())}; temporary memory of roi_align and its gradient: {temporary / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    main()
