"""The losses of both stages of Mask R-CNN for a batch."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Key

from mambaout_jax.models import Model
from mambaout_jax.models.heads.rpn import ProposalLimits, Proposals, propose, pyramid_anchors, valid_anchors
from mambaout_jax.tasks.api import Batch, LossTerm
from mambaout_jax.tasks.detection import targets
from mambaout_jax.tasks.detection.losses import box_losses, mask_loss, mask_targets, proposal_losses
from mambaout_jax.tasks.detection.targets import (
    DETECTION_THRESHOLDS,
    PROPOSAL_THRESHOLDS,
    SampleSizes,
    assign,
)


def training_losses(
    model: Model,
    variables: dict[str, Any],
    batch: Batch,
    key: Key[Array, ""],
    *,
    limits: ProposalLimits,
    rpn_samples: SampleSizes,
    roi_samples: SampleSizes,
) -> tuple[dict[str, LossTerm], Any]:
    """Compute the five terms of the loss, and the updated batch statistics.

    Args:
        batch: normalized "image" (b, h, w, c), "size" (b, 2) of the images in the canvas, and the objects of each
            image: "boxes" (b, m, 4) in pixels, "classes" (b, m), "masks" (b, m, 112, 14) and "present" (b, m), false
            for padding.
    """
    model_key, proposal_key, detection_key = jax.random.split(key, 3)
    gt_boxes, gt_valid = batch["boxes"], batch["present"]
    levels, batch_stats = model.call(variables, "levels", batch["image"], model_key, train=True)
    outputs, _ = model.call(variables, "score_anchors", levels)
    strides = [info.stride for info in model.feature_info]
    anchors = pyramid_anchors(levels, strides, model.options["anchor_scale"])

    assigned = assign(
        jnp.broadcast_to(jnp.concatenate(anchors)[None], (len(gt_boxes), sum(map(len, anchors)), 4)),
        jnp.concatenate(valid_anchors(levels, strides, batch["size"]), axis=1),
        gt_boxes,
        gt_valid,
        PROPOSAL_THRESHOLDS,
    )
    samples = targets.sample(assigned, rpn_samples, proposal_key)
    terms = proposal_losses(outputs, anchors, gt_boxes, samples)

    boxes, valid = append_gt_boxes(propose(outputs, anchors, batch["size"], limits), gt_boxes, gt_valid)
    assigned = assign(boxes, valid, gt_boxes, gt_valid, DETECTION_THRESHOLDS)
    samples = targets.sample(assigned, roi_samples, detection_key)
    boxes = jnp.take_along_axis(boxes, samples.index[..., None], axis=1)
    (logits, deltas), _ = model.call(variables, "classify", levels, boxes)
    terms |= box_losses(logits, deltas, boxes, gt_boxes, batch["classes"], samples)

    # Positive samples come first.
    most = min(roi_samples.max_positives, boxes.shape[1])
    boxes, samples = boxes[:, :most], jax.tree.map(lambda x: x[:, :most], samples)
    classes = jnp.take_along_axis(batch["classes"], samples.gt_index, axis=1)
    masks, _ = model.call(variables, "segment", levels, boxes, classes)
    terms |= mask_loss(masks, mask_targets(batch["masks"], gt_boxes, boxes, samples), samples)
    return terms, batch_stats


def append_gt_boxes(
    proposals: Proposals, gt_boxes: Float[Array, "b m 4"], gt_valid: Bool[Array, "b m"]
) -> tuple[Float[Array, "b n 4"], Bool[Array, "b n"]]:
    """Return the ground-truth boxes followed by the proposals, and which of them are valid."""
    boxes = jnp.concatenate([gt_boxes, lax.stop_gradient(proposals.boxes)], axis=1)
    return boxes, jnp.concatenate([gt_valid, proposals.valid], axis=1)
