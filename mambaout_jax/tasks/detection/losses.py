"""The five losses of Mask R-CNN, each a sum over samples and a denominator.

Reference: the losses of mmdetection 3.3.0 with its configs for Swin. The denominators of both stages are numbers of
samples, positive and negative, also for the deltas of boxes, which only positive samples have.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, UInt8

from mambaout_jax.models.heads import mask_rcnn, rpn
from mambaout_jax.models.heads.mask_rcnn import MASK_SIDE
from mambaout_jax.models.heads.rpn import AnchorOutputs
from mambaout_jax.ops import crop_masks, encode_boxes
from mambaout_jax.tasks.api import LossTerm
from mambaout_jax.tasks.detection.objects import OBJECT_MASK_SIDE
from mambaout_jax.tasks.detection.targets import Samples


def proposal_losses(
    outputs: Sequence[AnchorOutputs],
    anchors: Sequence[Float[Array, "_ 4"]],
    gt_boxes: Float[Array, "b m 4"],
    samples: Samples,
) -> dict[str, LossTerm]:
    """Compute the losses of the first stage, "rpn_class" and "rpn_box".

    Args:
        gt_boxes: boxes of the objects.
        samples: of the anchors of all levels, one after the other.
    """
    logits = jnp.concatenate([output.logits for output in outputs], axis=1)
    deltas = jnp.concatenate([output.deltas for output in outputs], axis=1)
    logits = jnp.take_along_axis(logits, samples.index, axis=1)
    deltas = jnp.take_along_axis(deltas, samples.index[..., None], axis=1)
    boxes = jnp.take(jnp.concatenate(anchors), samples.index, axis=0)
    cross_entropy = optax.sigmoid_binary_cross_entropy(logits, samples.is_positive.astype(jnp.float32))
    l1_loss = _l1_loss(boxes, deltas, gt_boxes, samples, rpn.DELTA_STDS)
    # mmdetection counts an image without any object as one more sample.
    total = samples.valid.sum() + (~samples.is_positive.any(1)).sum()
    total = total.astype(jnp.float32)
    return {
        "rpn_class": LossTerm(jnp.where(samples.valid, cross_entropy, 0.0).sum(), total),
        "rpn_box": LossTerm(l1_loss.sum(), total),
    }


def box_losses(
    logits: Float[Array, "b n k1"],
    deltas: Float[Array, "b n k 4"],
    boxes: Float[Array, "b n 4"],
    gt_boxes: Float[Array, "b m 4"],
    classes: Int[Array, "b m"],
    samples: Samples,
) -> dict[str, LossTerm]:
    """Compute the losses of the second stage, "class" and "box".

    Args:
        logits, deltas: of the sampled boxes.
        boxes: the sampled boxes.
        gt_boxes, classes: of the objects.
    """
    background = deltas.shape[2]
    target = jnp.where(samples.is_positive, jnp.take_along_axis(classes, samples.gt_index, axis=1), background)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, target)
    own = jnp.minimum(target, background - 1)[..., None, None]
    deltas = jnp.take_along_axis(deltas, own, axis=2)[:, :, 0]
    l1_loss = _l1_loss(boxes, deltas, gt_boxes, samples, mask_rcnn.DELTA_STDS)
    total = samples.valid.sum().astype(jnp.float32)
    return {
        "class": LossTerm(jnp.where(samples.valid, cross_entropy, 0.0).sum(), total),
        "box": LossTerm(l1_loss.sum(), total),
    }


def _l1_loss(boxes, deltas, gt_boxes, samples, stds):
    """Return the L1 loss of the deltas to each sample's object, (b, n); 0 for negative samples."""
    own = jnp.take_along_axis(gt_boxes, samples.gt_index[..., None], axis=1)
    # Padding has no extent; its deltas are not finite, and neither would be its gradient.
    used, unit = samples.is_positive[..., None], jnp.array([0.0, 0.0, 1.0, 1.0])[None, None]
    target = encode_boxes(jnp.where(used, boxes, unit), jnp.where(used, own, unit), stds)
    return jnp.where(used, jnp.abs(deltas - target), 0.0).sum(-1)


def mask_targets(
    masks: UInt8[Array, "b m 112 14"],
    gt_boxes: Float[Array, "b m 4"],
    boxes: Float[Array, "b n 4"],
    samples: Samples,
) -> Float[Array, "b n 28 28"]:
    """Return 1 at the pixels of the object of each sampled box, on a grid over the box.

    Args:
        masks: of the objects, on grids of 112x112 over their boxes, with 8 pixels in a byte.
    """

    def crop(masks, gt_boxes, boxes, samples):
        side = OBJECT_MASK_SIDE
        masks = jnp.unpackbits(jnp.take(masks, samples.gt_index, axis=0), axis=-1).astype(jnp.float32)
        own = jnp.take(gt_boxes, samples.gt_index, axis=0)
        origin, extent = own[:, :2], jnp.maximum(own[:, 2:] - own[:, :2], 1e-3)
        on_grid = (boxes - jnp.concatenate([origin, origin], 1)) / jnp.concatenate([extent, extent], 1) * side
        return crop_masks(masks, on_grid, output_size=MASK_SIDE)

    shares = jax.vmap(crop)(masks, gt_boxes, boxes, samples)
    return (shares >= 0.5).astype(jnp.float32)


def mask_loss(
    logits: Float[Array, "b n 28 28"], targets: Float[Array, "b n 28 28"], samples: Samples
) -> dict[str, LossTerm]:
    """Compute the loss of the masks of positive samples, "mask"."""
    cross_entropy = optax.sigmoid_binary_cross_entropy(logits, targets).mean((2, 3))
    total = samples.is_positive.sum().astype(jnp.float32)
    return {"mask": LossTerm(jnp.where(samples.is_positive, cross_entropy, 0.0).sum(), total)}
