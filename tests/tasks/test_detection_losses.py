"""Assignment, sampling and losses of Mask R-CNN are those of mmdetection."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mambaout_jax.models.heads import rpn
from mambaout_jax.models.heads.mask_rcnn import BoxHead, MaskHead
from mambaout_jax.models.heads.rpn import ProposalLimits, RPNHead
from mambaout_jax.ops import crop_masks
from mambaout_jax.tasks.detection import losses, targets, training
from mambaout_jax.tasks.detection.targets import IoUThresholds, Samples, SampleSizes, assign, sample
from mambaout_jax.weights.state_dict import export_state_dict
from tests.marks import slow_but
from tests.models import dense_golden
from tests.models.test_mask_rcnn import (  # noqa: F401 - conv_backbone is a fixture
    FLOAT32,
    assert_gradients_close,
    build_model,
    conv_backbone,
    load_images,
    load_module,
)


def pad(rows, most):
    """Return arrays (n, ...) of several images as one array, and which entries are not padding."""
    padded = np.zeros((len(rows), most, *rows[0].shape[1:]), rows[0].dtype)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return jnp.asarray(padded), jnp.arange(most)[None] < jnp.array([len(row) for row in rows])[:, None]


def objects_of(case, most=8):
    """Return boxes, classes and presence of the objects of a case."""
    count = sum(name.startswith("gt_bboxes") for name in case.inputs)
    boxes, present = pad([case.inputs[f"gt_bboxes{image}"] for image in range(count)], most)
    classes, _ = pad([case.inputs[f"gt_labels{image}"].astype(np.int32) for image in range(count)], most)
    return boxes, classes, present


def inject(case, stage, assigned, renumber):
    """Return the samples that a case has recorded for one stage.

    Args:
        renumber: function of (image, indices of the case) that returns indices of boxes.
    """
    rows = []
    for image, of_image in enumerate(assigned):
        parts = [np.asarray(renumber(image, case.inputs[f"{stage}_{kind}_inds{image}"])) for kind in ("pos", "neg")]
        index, is_positive = np.concatenate(parts), np.repeat([True, False], [len(part) for part in parts])
        assert (np.asarray(of_image)[parts[0]] >= 0).all()
        assert (np.asarray(of_image)[parts[1]] == targets.BACKGROUND).all()
        rows.append((index.astype(np.int32), is_positive))
    most = max(len(index) for index, _ in rows)
    index, valid = pad([row[0] for row in rows], most)
    is_positive, _ = pad([row[1] for row in rows], most)
    objects = jnp.where(is_positive, jnp.take_along_axis(assigned, index, axis=1), 0)
    return Samples(index, objects, is_positive, valid)


@pytest.mark.parametrize(
    "name", [name for name in dense_golden.names("assigner__*") if not name.endswith("ignore_iof_0p5")]
)
def test_boxes_are_assigned_as_by_mmdetection(name):
    case = dense_golden.load(name)
    options = case.record["kwargs"]
    thresholds = IoUThresholds(options["pos_iou_thr"], options["neg_iou_thr"], options["min_pos_iou"])
    boxes = jnp.asarray(case.inputs["priors"])
    objects, present = pad([case.inputs["gt_bboxes"]], 8)
    ours = jax.jit(assign, static_argnums=4)(boxes[None], jnp.ones((1, len(boxes)), bool), objects, present, thresholds)
    expected = case.outputs["gt_inds"] - 1  # 0 is the background and -1 ignored there
    np.testing.assert_array_equal(ours[0], np.where(case.outputs["gt_inds"] < 0, targets.IGNORED, expected))


def test_samples_are_drawn_without_replacement():
    rng = np.random.default_rng(0)
    assigned = jnp.asarray(rng.choice([0, 3, targets.BACKGROUND, targets.IGNORED], (2, 500), p=[0.1, 0.1, 0.7, 0.1]))
    assigned = assigned.at[1].set(jnp.where(assigned[1] >= 0, targets.BACKGROUND, assigned[1])).at[1, 7].set(2)
    drawn = [sample(assigned, SampleSizes(64, 16), jax.random.key(seed)) for seed in (0, 0, 1)]
    for found in drawn:
        assert found.index.shape == (2, 64)
        assert found.valid.sum(1).tolist() == [64, 64]
        assert found.is_positive.sum(1).tolist() == [16, 1]
        for image in range(2):
            index = np.asarray(found.index[image])[np.asarray(found.valid[image])]
            assert len(set(index)) == len(index)
            values = np.asarray(assigned[image])[np.asarray(found.index[image])]
            is_positive = np.asarray(found.is_positive[image])
            assert (values[is_positive] == np.asarray(found.gt_index[image])[is_positive]).all()
            assert (values[np.asarray(found.valid[image]) & ~is_positive] == targets.BACKGROUND).all()
    first, same, other = (np.asarray(found.index) for found in drawn)
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


def test_few_boxes_are_all_sampled():
    assigned = jnp.array([[targets.IGNORED, 0, targets.BACKGROUND, targets.BACKGROUND]])
    found = sample(assigned, SampleSizes(8, 4), jax.random.key(0))
    assert sorted(np.asarray(found.index)[np.asarray(found.valid)]) == [1, 2, 3]


@pytest.mark.parametrize("name", dense_golden.names("rpn_loss__*"))
def test_the_losses_of_the_first_stage_are_those_of_mmdetection(name):
    case = dense_golden.load(name)
    options, record = case.record["kwargs"], case.record
    head, variables = load_module(
        RPNHead(options["feat_channels"], dtype=FLOAT32), case.state_dict, "rpn_head", "rpn_head"
    )
    levels = [jnp.asarray(x) for x in dense_golden.maps(case.inputs, "feat")]
    strides = options["anchor_generator"]["strides"][:-1]
    anchors = rpn.pyramid_anchors(levels, strides, 8.0)
    objects, _, present = objects_of(case)
    inside = jnp.concatenate(rpn.valid_anchors(levels, strides, jnp.asarray(record["img_shapes"])), axis=1)
    boxes = jnp.broadcast_to(jnp.concatenate(anchors)[None], (len(objects), inside.shape[1], 4))
    assigned = assign(boxes, inside, objects, present, targets.PROPOSAL_THRESHOLDS)
    samples = inject(case, "rpn", assigned, lambda image, index: np.flatnonzero(inside[image])[index])

    @jax.jit
    def compute(variables, levels):
        terms = losses.proposal_losses(head.apply(variables, levels), anchors, objects, samples)
        return sum(term.numerator / term.denominator for term in terms.values()), terms

    (_, terms), (of_variables, of_levels) = jax.value_and_grad(compute, (0, 1), has_aux=True)(variables, levels)
    assert terms["rpn_class"].denominator == case.outputs["avg_factor"]
    for kind, key in (("rpn_class", "loss_rpn_cls"), ("rpn_box", "loss_rpn_bbox")):
        atol = len(levels) * record["suggested_atols"][f"outputs/{key}"]
        assert terms[kind].numerator / terms[kind].denominator == pytest.approx(case.outputs[key].sum(), abs=atol)
    for level, gradient in enumerate(of_levels):
        case.assert_close(f"grads/inputs/feat{level}", gradient.transpose(0, 3, 1, 2))
    assert_gradients_close(case, of_variables["params"], "rpn_head", "rpn_head")


def second_stage(case):
    """Return boxes, objects, classes and samples of the second stage of a case."""
    objects, classes, present = objects_of(case)
    proposals, valid = pad([case.inputs[f"proposals{image}"] for image in range(len(objects))], 64)
    boxes, valid = training.append_gt_boxes(rpn.Proposals(proposals, jnp.ones(valid.shape), valid), objects, present)
    assigned = assign(boxes, valid, objects, present, targets.DETECTION_THRESHOLDS)
    numbers = np.asarray(present).sum(1)

    def renumber(image, index):  # the case has no padding between objects and proposals
        return np.where(index < numbers[image], index, index - numbers[image] + present.shape[1])

    samples = inject(case, "rcnn", assigned, renumber)
    return jnp.take_along_axis(boxes, samples.index[..., None], axis=1), objects, classes, samples


@pytest.mark.parametrize("name", dense_golden.names("bbox_head__*"))
def test_the_losses_of_boxes_are_those_of_mmdetection(name):
    case = dense_golden.load(name)
    options = case.record["kwargs"]
    module = BoxHead(options["in_channels"], options["fc_out_channels"], options["num_classes"], dtype=FLOAT32)
    head, variables = load_module(module, case.state_dict, "roi_head.bbox_head", "bbox_head")
    boxes, objects, classes, samples = second_stage(case)
    used = np.asarray(samples.valid)
    case.assert_close("outputs/rois", np.concatenate([np.argwhere(used)[:, :1], boxes[used]], 1))
    features = np.zeros((*used.shape, 7, 7, options["in_channels"]), np.float32)
    features[used] = case.inputs["rois_feat"].transpose(0, 2, 3, 1)

    @jax.jit
    def compute(variables, features):
        logits, deltas = head.apply(variables, features)
        terms = losses.box_losses(logits, deltas, boxes, objects, classes, samples)
        values = {name: term.numerator / term.denominator for name, term in terms.items()}
        return sum(values.values()), (values, logits)

    (_, (values, logits)), (of_variables, of_features) = jax.value_and_grad(compute, (0, 1), has_aux=True)(
        variables, jnp.asarray(features)
    )
    case.assert_close("outputs/cls_score", logits[used])
    case.assert_close("outputs/loss_cls", values["class"])
    case.assert_close("outputs/loss_bbox", values["box"])
    case.assert_close("grads/inputs/rois_feat", of_features[used].transpose(0, 3, 1, 2))
    assert_gradients_close(case, of_variables["params"], "roi_head.bbox_head", "bbox_head")


@pytest.mark.parametrize("name", dense_golden.names("mask_head__*"))
def test_the_loss_of_masks_is_that_of_mmdetection(name):
    case = dense_golden.load(name)
    options = case.record["kwargs"]
    module = MaskHead(options["conv_out_channels"], options["num_classes"], dtype=FLOAT32)
    head, variables = load_module(module, case.state_dict, "roi_head.mask_head", "mask_head")
    boxes, _, classes, samples = second_stage(case)
    used = np.asarray(samples.is_positive)
    case.assert_close("outputs/pos_rois", np.concatenate([np.argwhere(used)[:, :1], boxes[used]], 1))
    wanted = []
    for image in range(len(used)):
        masks = jnp.asarray(case.inputs[f"gt_masks{image}"], jnp.float32)[samples.gt_index[image][used[image]]]
        wanted.append(crop_masks(masks, boxes[image][used[image]], output_size=28) >= 0.5)
    wanted = jnp.concatenate(wanted)
    np.testing.assert_array_equal(wanted, case.outputs["mask_targets"])
    labels = jnp.take_along_axis(classes, samples.gt_index, axis=1)[used]
    alone = Samples(labels, labels, jnp.ones((1, len(labels)), bool), jnp.ones((1, len(labels)), bool))

    @jax.jit
    def compute(variables, features):
        logits = head.apply(variables, features)
        own = jnp.take_along_axis(logits, labels[:, None, None, None], axis=-1)[..., 0]
        term = losses.mask_loss(own[None], wanted[None].astype(jnp.float32), alone)["mask"]
        return term.numerator / term.denominator, logits

    features = jnp.asarray(case.inputs["rois_feat"].transpose(0, 2, 3, 1))
    (loss, logits), (of_variables, of_features) = jax.value_and_grad(compute, (0, 1), has_aux=True)(variables, features)
    case.assert_close("outputs/mask_pred", logits.transpose(0, 3, 1, 2))
    case.assert_close("outputs/loss_mask", loss[None])
    case.assert_close("grads/inputs/rois_feat", of_features.transpose(0, 3, 1, 2))
    assert_gradients_close(case, of_variables["params"], "roi_head.mask_head", "mask_head")


def pack_mask(mask, box):
    """Sample a mask of a whole image on the grid of 112x112 over its box."""
    x1, y1, x2, y2 = box
    rows, columns = (
        np.clip(low + (np.arange(112) + 0.5) * (high - low) / 112, 0, side - 1).astype(int)
        for low, high, side in ((y1, y2, mask.shape[0]), (x1, x2, mask.shape[1]))
    )
    return np.packbits(mask[np.ix_(rows, columns)], axis=-1)


def grid_masks(case, objects, present):
    """Return the masks of all objects on grids over their boxes."""
    masks = np.zeros((*present.shape, 112, 14), np.uint8)
    for image, index in np.argwhere(present):
        masks[image, index] = pack_mask(case.inputs[f"gt_masks{image}"][index], objects[image, index])
    return jnp.asarray(masks)


@pytest.mark.parametrize("name", dense_golden.names("mask_head__*"))
def test_targets_of_masks_from_grids_differ_in_few_pixels(name):
    case = dense_golden.load(name)
    boxes, objects, _, samples = second_stage(case)
    used, present = np.asarray(samples.is_positive), objects_of(case)[2]
    ours = losses.mask_targets(grid_masks(case, objects, np.asarray(present)), objects, boxes, samples)[used]
    assert np.mean(np.asarray(ours) == case.outputs["mask_targets"]) > 0.98


@pytest.mark.parametrize(
    "name",
    [
        *slow_but([], dense_golden.names("mask_rcnn__loss_*")),
        *slow_but([], dense_golden.names("mask_rcnn__loss"), "nightly"),
    ],
)
@pytest.mark.usefixtures("conv_backbone")
def test_whole_models_have_the_losses_of_mmdetection(name, monkeypatch):
    """With the samples of the reference, and targets of masks from whole bitmaps."""
    case = dense_golden.load(name)
    model, variables = build_model(case)
    images, sizes = load_images(model, case)
    objects, classes, present = objects_of(case)
    train = case.record["kwargs"]["train_cfg"]["rpn_proposal"]
    limits = ProposalLimits(train["nms_pre"], train["max_per_img"], train["nms"]["iou_threshold"])
    bitmaps = np.zeros((*present.shape, *images.shape[1:3]), np.float32)
    for image, index in np.argwhere(present):
        bitmap = case.inputs[f"gt_masks{image}"][index]
        bitmaps[image, index, : bitmap.shape[0], : bitmap.shape[1]] = bitmap
    batch = {"image": images, "size": sizes, "boxes": objects, "classes": classes, "present": present}
    batch["masks"] = jnp.asarray(bitmaps)
    numbers = np.asarray(present).sum(1)
    levels, _ = model.call(variables, "levels", images, None)
    inside = np.concatenate(rpn.valid_anchors(levels, [4, 8, 16, 32], sizes), axis=1)
    renumber = {
        "rpn": lambda image, index: np.flatnonzero(inside[image])[index],
        # The case has no padding between objects and proposals.
        "rcnn": lambda image, index: np.where(index < numbers[image], index, index - numbers[image] + present.shape[1]),
    }

    def exact_targets(masks, objects, boxes, samples):
        own = jnp.take_along_axis(masks, samples.gt_index[..., None, None], axis=1)
        return (jax.vmap(lambda *args: crop_masks(*args, output_size=28))(own, boxes) >= 0.5).astype(jnp.float32)

    monkeypatch.setattr(training, "mask_targets", exact_targets)

    def compute(params, draw):
        monkeypatch.setattr(targets, "sample", draw)
        terms, _ = training.training_losses(
            model,
            {**variables, "params": params},
            batch,
            jax.random.key(0),
            limits=limits,
            rpn_samples=of_anchors,
            roi_samples=SampleSizes(512, 128),
        )
        return sum(term.numerator / term.denominator for term in terms.values()), terms

    assigned, of_anchors = {}, SampleSizes(256, 128)

    def remember(found, sizes, key):
        assigned["rpn" if sizes == of_anchors else "rcnn"] = found
        return sample(found, sizes, key)

    def assign_only(params):
        compute(params, remember)
        return dict(assigned)

    found = jax.jit(assign_only)(variables["params"])
    samples = {stage: inject(case, stage, found[stage], renumber[stage]) for stage in renumber}

    def given(found, sizes, key):
        return samples["rpn" if sizes == of_anchors else "rcnn"]

    gradient = jax.jit(jax.value_and_grad(lambda params: compute(params, given), has_aux=True))
    (_, terms), gradient = gradient(variables["params"])
    values = {name: float(term.numerator / term.denominator) for name, term in terms.items()}
    for ours, key in (("rpn_class", "loss_rpn_cls"), ("rpn_box", "loss_rpn_bbox")):
        atol = 5 * case.record["suggested_atols"][f"outputs/{key}"]
        assert values[ours] == pytest.approx(case.outputs[key].sum(), abs=atol)
    case.assert_close("outputs/loss_cls", values["class"])
    case.assert_close("outputs/loss_bbox", values["box"])
    case.assert_close("outputs/loss_mask", np.array([values["mask"]]))
    key_format = model.family.key_formats[0]
    exported = export_state_dict(model.name, model.shapes, key_format, {**variables, "params": gradient})
    recorded = [key for key in case.grads if key.startswith("params/")]
    assert recorded
    for key in recorded:
        case.assert_close(f"grads/{key}", exported[key.removeprefix("params/")])
