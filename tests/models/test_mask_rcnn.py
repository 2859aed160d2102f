"""The parts of Mask R-CNN, and whole models, compute what mmdetection's compute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mambaout_jax as mo
from mambaout_jax import plugins
from mambaout_jax.models import Functional, ModelError
from mambaout_jax.models.heads import mask_rcnn, rpn
from mambaout_jax.models.heads.fpn import FPN
from mambaout_jax.models.heads.mask_rcnn import DetectionLimits
from mambaout_jax.models.heads.rpn import ProposalLimits, Proposals
from mambaout_jax.models.key_format import KeyFormat
from mambaout_jax.models.macs import count_macs
from mambaout_jax.weights.state_dict import export_state_dict, load_state_dict
from tests.marks import slow_but
from tests.models import dense_golden

HEADS = KeyFormat("heads", mask_rcnn.RULES)
FLOAT32 = jnp.dtype("float32")


def load_module(module, tensors, key, path):
    """Return a module and its variables from a state dict in which its keys begin with `key`."""
    module = Functional(module)
    wanted = {"params": {path: module.shapes["params"]}, "batch_stats": {}}
    tensors = {f"{key}.{name}": value for name, value in tensors.items()}
    loaded = load_state_dict(key, wanted, HEADS, tensors, {name: value.shape for name, value in tensors.items()})
    return module, {"params": loaded["params"][path], "batch_stats": {}}


def assert_gradients_close(case, gradients, key, path):
    """Compare the recorded gradients of parameters with those of a module."""
    variables = {"params": {path: gradients}, "batch_stats": {}}
    exported = export_state_dict(key, jax.eval_shape(lambda: variables), HEADS, variables)
    recorded = [name for name in case.grads if name.startswith("params/")]
    assert recorded
    for name in recorded:
        case.assert_close(f"grads/{name}", exported[f"{key}.{name.removeprefix('params/')}"])


@pytest.mark.parametrize("name", dense_golden.names("fpn__*"))
def test_the_pyramid_is_that_of_mmdetection(name):
    case = dense_golden.load(name)
    options = case.record["kwargs"]
    module = FPN(options["in_channels"], options["out_channels"], dtype=FLOAT32)
    neck, variables = load_module(module, case.state_dict, "neck", "neck")
    maps = [jnp.asarray(x) for x in dense_golden.maps(case.inputs, "feat")]
    levels, transpose = jax.vjp(neck.apply, variables, maps)
    for level, x in enumerate(levels):
        case.assert_close(f"outputs/p{level}", x.transpose(0, 3, 1, 2))
    of_variables, of_maps = transpose([jnp.asarray(x) for x in dense_golden.maps(case.inputs, "cotangent")])
    for level, x in enumerate(of_maps):
        case.assert_close(f"grads/inputs/feat{level}", x.transpose(0, 3, 1, 2))
    assert_gradients_close(case, of_variables["params"], "neck", "neck")


@pytest.mark.parametrize("name", dense_golden.names("rpn_proposals__*"))
def test_proposals_are_those_of_mmdetection(name):
    case = dense_golden.load(name)
    options, test = case.record["kwargs"], case.record["kwargs"]["test_cfg"]
    module = rpn.RPNHead(options["feat_channels"], dtype=FLOAT32)
    head, variables = load_module(module, case.state_dict, "rpn_head", "rpn_head")
    levels = [jnp.asarray(x) for x in dense_golden.maps(case.inputs, "feat")]
    outputs = head.apply(variables, levels)
    for level, output in enumerate(outputs):
        b, _, h, w = case.outputs[f"rpn_cls{level}"].shape
        case.assert_close(f"outputs/rpn_cls{level}", output.logits.reshape(b, h, w, 3).transpose(0, 3, 1, 2))
        case.assert_close(f"outputs/rpn_reg{level}", output.deltas.reshape(b, h, w, 12).transpose(0, 3, 1, 2))
    anchors = rpn.pyramid_anchors(levels, options["anchor_generator"]["strides"][:-1], 8.0)
    limits = ProposalLimits(test["nms_pre"], test["max_per_img"], test["nms"]["iou_threshold"])
    found = jax.jit(rpn.propose, static_argnums=3)(outputs, anchors, jnp.asarray(case.record["img_shapes"]), limits)
    for image in range(len(levels[0])):
        valid = np.asarray(found.valid[image])
        case.assert_close(f"outputs/bboxes{image}", found.boxes[image][valid])
        case.assert_close(f"outputs/scores{image}", found.scores[image][valid])


@pytest.mark.parametrize("name", dense_golden.names("bbox_predict__*"))
def test_detections_are_those_of_mmdetection(name):
    case = dense_golden.load(name)
    record, test = case.record, case.record["test_cfg"]
    logits = jnp.asarray(case.inputs["cls_score"])[None]
    deltas = jnp.asarray(case.inputs["bbox_pred"]).reshape(1, logits.shape[1], -1, 4)
    boxes = jnp.asarray(case.inputs["rois"][:, 1:])[None]
    proposals = Proposals(boxes, jnp.ones(boxes.shape[:2]), jnp.ones(boxes.shape[:2], bool))
    limits = DetectionLimits(
        score_threshold=test["score_thr"],
        iou_threshold=test["nms"]["iou_threshold"],
        max_detections=test["max_per_img"],
    )
    select = jax.jit(mask_rcnn.select_detections, static_argnums=4)
    found = select(proposals, logits, deltas, jnp.asarray([record["img_shape"]]), limits)
    boxes, scores, classes, valid = (np.asarray(x[0]) for x in found)
    scale = np.array(record.get("scale_factor", (1.0, 1.0)) * 2, np.float32) if record.get("rescale") else 1.0
    case.assert_close("outputs/bboxes", boxes[valid] / scale)
    case.assert_close("outputs/scores", scores[valid])
    np.testing.assert_array_equal(classes[valid], case.outputs["labels"])


@pytest.fixture
def conv_backbone(monkeypatch):
    """Load the plugin with the backbone of the reference data."""
    monkeypatch.setattr(plugins, "_loaded", {})
    plugins.load(["tests.toy.conv_backbone"])


def build_model(case):
    """Return the model of a case, and its variables by `from_torch`."""
    options = case.record["kwargs"]
    backbone, box = options["backbone"], options["roi_head"]["bbox_head"]
    model = mo.create_model(
        "mask_rcnn",
        backbone={"ConvBackbone": "conv_backbone", "MambaOutBackbone": "mambaout_femto"}[backbone["type"]],
        num_classes=box["num_classes"],
        channels=options["neck"]["out_channels"],
        box_channels=box["fc_out_channels"],
        sampling_ratio=options["roi_head"]["bbox_roi_extractor"]["roi_layer"]["sampling_ratio"],
        **{name: tuple(backbone[name]) for name in ("dims", "depths") if name in backbone},
    )
    return model, mo.from_torch(model, case.state_dict)


def load_images(model, case):
    """Return the normalized images of a case in one canvas of a multiple of 32 px, and their sizes."""
    images = [case.inputs[name] for name in sorted(case.inputs) if name.startswith("image")]
    sizes = np.array([image.shape[1:] for image in images])
    height, width = -(-sizes.max(0) // 32) * 32
    canvas = np.zeros((len(images), height, width, 3), np.float32)
    for index, image in enumerate(images):
        normalized = model.input_spec.normalize(jnp.asarray(image[::-1].transpose(1, 2, 0)[None]))
        canvas[index, : image.shape[1], : image.shape[2]] = normalized[0]
    return jnp.asarray(canvas), jnp.asarray(sizes)


@pytest.mark.parametrize("name", slow_but([], dense_golden.names("mask_rcnn__predict*")))
@pytest.mark.usefixtures("conv_backbone")
def test_whole_models_find_the_objects_that_mmdetection_finds(name):
    case = dense_golden.load(name)
    model, variables = build_model(case)
    test = case.record["kwargs"]["test_cfg"]
    limits = DetectionLimits(
        ProposalLimits(test["rpn"]["nms_pre"], test["rpn"]["max_per_img"], test["rpn"]["nms"]["iou_threshold"]),
        test["rcnn"]["score_thr"],
        test["rcnn"]["nms"]["iou_threshold"],
        test["rcnn"]["max_per_img"],
    )
    images, sizes = load_images(model, case)

    @jax.jit
    def run(variables, images, sizes):
        levels, _ = model.call(variables, "levels", images, None)
        return levels, model.call(variables, "detect", images, sizes, limits)[0]

    levels, found = run(variables, images, sizes)
    for level, x in enumerate(levels):
        case.assert_close(f"outputs/p{level}", x.transpose(0, 3, 1, 2))
    for image in range(len(images)):
        valid = np.asarray(found.valid[image])
        scale = np.array(case.record["scale_factors"][image] * 2, np.float32)
        case.assert_close(f"outputs/bboxes{image}", np.asarray(found.boxes[image])[valid] / scale)
        case.assert_close(f"outputs/scores{image}", found.scores[image][valid])
        case.assert_close(f"outputs/mask_logits{image}", found.mask_logits[image][valid])
        np.testing.assert_array_equal(found.classes[image][valid], case.outputs[f"labels{image}"])


@pytest.mark.parametrize(("size", "millions"), [("tiny", 43.13), ("small", 65.08), ("base", 99.70)])
def test_parameters_are_those_of_the_paper(size, millions):
    model = mo.create_model("mask_rcnn", backbone=f"mambaout_{size}")
    assert round(model.num_params / 1e6, 2) == millions


@pytest.mark.slow
def test_the_cost_is_that_of_the_paper():
    """MambaOut's paper, table 2: 262 G for MambaOut-Tiny at 800x1280, with 1,000 proposals and 100 masks."""
    model = mo.create_model("mask_rcnn", backbone="mambaout_tiny")
    image = jax.ShapeDtypeStruct((1, 800, 1280, 3), jnp.float32)
    assert count_macs(model.apply, model.shapes, image) / 1e9 == pytest.approx(262.2, abs=0.2)


@pytest.mark.slow
def test_outputs_of_bfloat16_models_are_not_rounded():
    """Of rounded scores, many would be equal, and so would be their order."""
    sizes = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8), "channels": 8, "box_channels": 16, "num_classes": 3}
    model = mo.create_model("mask_rcnn_mambaout_femto", dtype="bfloat16", **sizes)
    variables = model.init(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (1, 64, 64, 3))

    @jax.jit
    def compute(variables):
        levels, _ = model.call(variables, "levels", images, None)
        anchors, _ = model.call(variables, "score_anchors", levels)
        boxes = jnp.array([[[4.0, 4.0, 40.0, 50.0], [10.0, 0.0, 60.0, 30.0]]])
        return anchors[0], model.call(variables, "classify", levels, boxes)[0]

    for output in jax.tree.leaves(compute(variables)):
        assert output.dtype == jnp.float32
        assert (output != output.astype(jnp.bfloat16).astype(jnp.float32)).any()


def test_strides_that_are_not_multiples_of_4_are_refused():
    with pytest.raises(ModelError, match="stride of the patches is 14 px"):
        mo.create_model("mask_rcnn_vim_tiny", img_size=56, patch_size=14, stride=14)
