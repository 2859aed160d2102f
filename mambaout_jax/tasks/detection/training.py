"""The losses of both stages of Mask R-CNN for a batch."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Key

from mambaout_jax.models import Model
from mambaout_jax.models.heads.rpn import ProposalLimits, Proposals, anchors_inside, anchors_of, propose
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
    proposal_samples: SampleSizes,
    detection_samples: SampleSizes,
) -> tuple[dict[str, LossTerm], Any]:
    """Compute the five terms of the loss, and the updated batch statistics.

    Args:
        batch: normalized "image" (b, h, w, c), "size" (b, 2) of the images in the canvas, and the objects of each
            image: "boxes" (b, m, 4) in pixels, "classes" (b, m), "masks" (b, m, 112, 14) and "present" (b, m), false
            for padding.
    """
    model_key, proposal_key, detection_key = jax.random.split(key, 3)
    objects, present = batch["boxes"], batch["present"]
    levels, batch_stats = model.call(variables, "levels", batch["image"], model_key, train=True)
    outputs, _ = model.call(variables, "score_anchors", levels)
    strides = [info.stride for info in model.feature_info]
    anchors = anchors_of(levels, strides, model.options["anchor_scale"])

    assigned = assign(
        jnp.broadcast_to(jnp.concatenate(anchors)[None], (len(objects), sum(map(len, anchors)), 4)),
        jnp.concatenate(anchors_inside(levels, strides, batch["size"]), axis=1),
        objects,
        present,
        PROPOSAL_THRESHOLDS,
    )
    samples = targets.sample(assigned, proposal_samples, proposal_key)
    terms = proposal_losses(outputs, anchors, objects, samples)

    boxes, valid = with_objects(propose(outputs, anchors, batch["size"], limits), objects, present)
    assigned = assign(boxes, valid, objects, present, DETECTION_THRESHOLDS)
    samples = targets.sample(assigned, detection_samples, detection_key)
    boxes = jnp.take_along_axis(boxes, samples.index[..., None], axis=1)
    (logits, offsets), _ = model.call(variables, "classify", levels, boxes)
    terms |= box_losses(logits, offsets, boxes, objects, batch["classes"], samples)

    # Boxes of objects come first.
    most = min(detection_samples.objects, boxes.shape[1])
    boxes, samples = boxes[:, :most], jax.tree.map(lambda x: x[:, :most], samples)
    classes = jnp.take_along_axis(batch["classes"], samples.objects, axis=1)
    masks, _ = model.call(variables, "segment", levels, boxes, classes)
    terms |= mask_loss(masks, mask_targets(batch["masks"], objects, boxes, samples), samples)
    return terms, batch_stats


def with_objects(
    proposals: Proposals, objects: Float[Array, "b m 4"], present: Bool[Array, "b m"]
) -> tuple[Float[Array, "b n 4"], Bool[Array, "b n"]]:
    """Return the boxes of objects and the proposals, and which of them are valid."""
    boxes = jnp.concatenate([objects, lax.stop_gradient(proposals.boxes)], axis=1)
    return boxes, jnp.concatenate([present, proposals.valid], axis=1)
