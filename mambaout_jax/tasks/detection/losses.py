"""The five losses of Mask R-CNN, each a sum over samples and a denominator.

Reference: the losses of mmdetection 3.3.0 with its configs for Swin. The denominators of both stages are numbers of
samples, objects and background, also for the offsets of boxes, which only objects have.
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
from mambaout_jax.tasks.detection.targets import Samples

# Side of the masks of objects, which cover their boxes.
OBJECT_MASK_SIDE = 112


def proposal_losses(
    outputs: Sequence[AnchorOutputs],
    anchors: Sequence[Float[Array, "_ 4"]],
    objects: Float[Array, "b m 4"],
    samples: Samples,
) -> dict[str, LossTerm]:
    """Compute the losses of the first stage, "rpn_class" and "rpn_box".

    Args:
        objects: boxes of the objects.
        samples: of the anchors of all levels, one after the other.
    """
    logits = jnp.concatenate([output.logits for output in outputs], axis=1)
    offsets = jnp.concatenate([output.offsets for output in outputs], axis=1)
    logits = jnp.take_along_axis(logits, samples.index, axis=1)
    offsets = jnp.take_along_axis(offsets, samples.index[..., None], axis=1)
    boxes = jnp.take(jnp.concatenate(anchors), samples.index, axis=0)
    entropy = optax.sigmoid_binary_cross_entropy(logits, samples.is_object.astype(jnp.float32))
    distance = _distance(boxes, offsets, objects, samples, rpn.OFFSET_STDS)
    # mmdetection counts an image without any object as one more sample.
    total = samples.valid.sum() + (~samples.is_object.any(1)).sum()
    total = total.astype(jnp.float32)
    return {
        "rpn_class": LossTerm(jnp.where(samples.valid, entropy, 0.0).sum(), total),
        "rpn_box": LossTerm(distance.sum(), total),
    }


def box_losses(
    logits: Float[Array, "b n k1"],
    offsets: Float[Array, "b n k 4"],
    boxes: Float[Array, "b n 4"],
    objects: Float[Array, "b m 4"],
    classes: Int[Array, "b m"],
    samples: Samples,
) -> dict[str, LossTerm]:
    """Compute the losses of the second stage, "class" and "box".

    Args:
        logits, offsets: of the sampled boxes.
        boxes: the sampled boxes.
        objects, classes: of the objects.
    """
    background = offsets.shape[2]
    target = jnp.where(samples.is_object, jnp.take_along_axis(classes, samples.objects, axis=1), background)
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, target)
    own = jnp.minimum(target, background - 1)[..., None, None]
    offsets = jnp.take_along_axis(offsets, own, axis=2)[:, :, 0]
    distance = _distance(boxes, offsets, objects, samples, mask_rcnn.OFFSET_STDS)
    total = samples.valid.sum().astype(jnp.float32)
    return {
        "class": LossTerm(jnp.where(samples.valid, entropy, 0.0).sum(), total),
        "box": LossTerm(distance.sum(), total),
    }


def _distance(boxes, offsets, objects, samples, stds):
    """Return the sum of the absolute differences of offsets from those of each sample's object, (b, n)."""
    own = jnp.take_along_axis(objects, samples.objects[..., None], axis=1)
    # Padding has no extent; its offsets are not finite, and neither would be its gradient.
    used, unit = samples.is_object[..., None], jnp.array([0.0, 0.0, 1.0, 1.0])[None, None]
    target = encode_boxes(jnp.where(used, boxes, unit), jnp.where(used, own, unit), stds)
    return jnp.where(used, jnp.abs(offsets - target), 0.0).sum(-1)


def mask_targets(
    masks: UInt8[Array, "b m 112 14"],
    objects: Float[Array, "b m 4"],
    boxes: Float[Array, "b n 4"],
    samples: Samples,
) -> Float[Array, "b n 28 28"]:
    """Return 1 at the pixels of the object of each sampled box, on a grid over the box.

    Args:
        masks: of the objects, on grids of 112x112 over their boxes, with 8 pixels in a byte.
    """

    def crop(masks, objects, boxes, samples):
        side = OBJECT_MASK_SIDE
        masks = jnp.unpackbits(jnp.take(masks, samples.objects, axis=0), axis=-1).astype(jnp.float32)
        own = jnp.take(objects, samples.objects, axis=0)
        origin, extent = own[:, :2], jnp.maximum(own[:, 2:] - own[:, :2], 1e-3)
        on_grid = (boxes - jnp.concatenate([origin, origin], 1)) / jnp.concatenate([extent, extent], 1) * side
        return crop_masks(masks, on_grid, bins=MASK_SIDE)

    shares = jax.vmap(crop)(masks, objects, boxes, samples)
    return (shares >= 0.5).astype(jnp.float32)


def mask_loss(
    logits: Float[Array, "b n 28 28"], targets: Float[Array, "b n 28 28"], samples: Samples
) -> dict[str, LossTerm]:
    """Compute the loss of the masks of sampled boxes of objects, "mask"."""
    entropy = optax.sigmoid_binary_cross_entropy(logits, targets).mean((2, 3))
    return {
        "mask": LossTerm(jnp.where(samples.is_object, entropy, 0.0).sum(), samples.is_object.sum().astype(jnp.float32))
    }
