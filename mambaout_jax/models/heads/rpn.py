"""The region proposal network: it scores anchors and regresses boxes from them.

Reference: Ren et al., Faster R-CNN, 2015; layers, limits and parameter names of mmdetection 3.3.0 (`RPNHead`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from mambaout_jax.models.layers.conv import Conv2d
from mambaout_jax.models.layers.parameters import normal_of
from mambaout_jax.ops import clip_boxes, decode_boxes, make_anchors, nms, valid_cells
from mambaout_jax.ops.sharding import map_rows

# Heights divided by widths of the anchors.
RATIOS = (0.5, 1.0, 2.0)
DELTA_STDS = (1.0, 1.0, 1.0, 1.0)
# Images are padded to a multiple of this before anchors are placed, in pixels.
PAD_MULTIPLE = 32


class ProposalLimits(NamedTuple):
    """How many anchors become proposals.

    Args:
        pre_nms_top_k: anchors of each level that enter the NMS, those with the best scores.
        max_proposals: largest number of proposals of an image.
        iou_threshold: IoU above which the NMS of a level removes the proposal with the lower score.
    """

    pre_nms_top_k: int = 1000
    max_proposals: int = 1000
    iou_threshold: float = 0.7


class Proposals(NamedTuple):
    """The best boxes of each image, in the order of descending scores; entries that are not valid are padding."""

    boxes: Float[Array, "b n 4"]
    scores: Float[Array, "b n"]
    valid: Bool[Array, "b n"]


class AnchorOutputs(NamedTuple):
    """The outputs for each anchor of a level: the logit of an object, and the deltas to its box."""

    logits: Float[Array, "b _"]
    deltas: Float[Array, "b _ 4"]


class RPNHead(nnx.Module):
    """The RPN head: the same convolutions score the anchors of every level."""

    def __init__(self, channels: int, *, dtype: jnp.dtype):
        init = normal_of(0.01)
        self.rpn_conv = Conv2d(channels, channels, 3, padding=1, initializer=init, dtype=dtype)
        # In float32: of rounded logits, many are equal.
        self.rpn_cls = Conv2d(channels, len(RATIOS), 1, initializer=init, dtype=jnp.dtype(jnp.float32))
        self.rpn_reg = Conv2d(channels, 4 * len(RATIOS), 1, initializer=init, dtype=jnp.dtype(jnp.float32))

    def __call__(self, levels: Sequence[Float[Array, "b _ _ c"]]) -> list[AnchorOutputs]:
        """Compute logits and deltas in float32, in the order of `pyramid_anchors`."""
        found = []
        for x in levels:
            x = jax.nn.relu(self.rpn_conv(x))
            logits, deltas = self.rpn_cls(x), self.rpn_reg(x)
            found.append(
                AnchorOutputs(
                    logits.reshape(x.shape[0], -1),
                    deltas.reshape(x.shape[0], -1, 4),
                )
            )
        return found


def pyramid_anchors(levels: Sequence[Array], strides: Sequence[int], scale: float) -> list[Float[Array, "_ 4"]]:
    """Return the anchors of every level; see `make_anchors`.

    Args:
        strides: of all levels but the last, which has twice the last one.
    """
    strides = (*strides, 2 * strides[-1])
    return [make_anchors(x.shape[1:3], stride, scale, RATIOS) for x, stride in zip(levels, strides, strict=True)]


def valid_anchors(
    levels: Sequence[Array], strides: Sequence[int], sizes: Int[Array, "b 2"]
) -> list[Bool[Array, "b _"]]:
    """Return which anchors of every level belong to images of (height, width), padded to a multiple of `PAD_MULTIPLE`.

    The loss uses no others.

    Args:
        strides: as of `pyramid_anchors`.
    """
    padded = -(-sizes // PAD_MULTIPLE) * PAD_MULTIPLE
    strides = (*strides, 2 * strides[-1])
    inside = [valid_cells(x.shape[1:3], stride, padded) for x, stride in zip(levels, strides, strict=True)]
    return [jnp.repeat(cells.reshape(len(sizes), -1), len(RATIOS), axis=1) for cells in inside]


def propose(
    outputs: Sequence[AnchorOutputs],
    anchors: Sequence[Float[Array, "_ 4"]],
    sizes: Int[Array, "b 2"],
    limits: ProposalLimits,
) -> Proposals:
    """Select the best boxes of each image, without a gradient.

    As in a batch of mmdetection, anchors of the padding around smaller images take part.

    Args:
        sizes: (height, width) of the images in their canvas, to which boxes are clipped.
    """
    boxes, scores, levels = [], [], []
    for level, (output, of_level) in enumerate(zip(outputs, anchors, strict=True)):
        output = jax.tree.map(lax.stop_gradient, output)
        most = min(limits.pre_nms_top_k, output.logits.shape[1])
        best, index = lax.top_k(jax.nn.sigmoid(output.logits), most)
        deltas = jnp.take_along_axis(output.deltas, index[..., None], axis=1)
        boxes.append(decode_boxes(jnp.take(of_level, index, axis=0), deltas, DELTA_STDS))
        scores.append(best)
        levels.append(np.full(most, level, np.int32))
    boxes = clip_boxes(jnp.concatenate(boxes, 1), sizes)
    scores, levels = jnp.concatenate(scores, 1), np.concatenate(levels)
    sides = boxes[..., 2:] - boxes[..., :2]

    def select(boxes, scores, valid):
        kept = nms(
            boxes,
            scores,
            iou_threshold=limits.iou_threshold,
            max_output=limits.max_proposals,
            valid=valid,
            groups=jnp.asarray(levels),
        )
        return Proposals(jnp.take(boxes, kept.index, axis=0), jnp.take(scores, kept.index), kept.valid)

    return map_rows(jax.vmap(select), boxes, scores, (sides > 0).all(-1))
