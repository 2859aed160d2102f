"""Mask R-CNN: object detection and instance segmentation in two stages.

The first stage proposes boxes (`rpn`); the second classifies them, regresses the boxes of objects, and segments each
object.

Reference: He et al., Mask R-CNN, 2017; layers, initial values, parameter names and thresholds of mmdetection 3.3.0
(`MaskRCNN` of its configs for Swin).
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from mambaout_jax.checks import ConfigKey
from mambaout_jax.models.heads.dense_model import NUM_MAPS, DenseModel
from mambaout_jax.models.heads.fpn import FPN
from mambaout_jax.models.heads.head import Head
from mambaout_jax.models.heads.pyramid import pyramid_rules
from mambaout_jax.models.heads.rpn import (
    AnchorOutputs,
    ProposalLimits,
    Proposals,
    RPNHead,
    propose,
    pyramid_anchors,
)
from mambaout_jax.models.key_format import Rule, Transform, permute
from mambaout_jax.models.layers.conv import Conv2d, ConvTranspose2d
from mambaout_jax.models.layers.linear import Linear
from mambaout_jax.models.layers.parameters import kaiming_normal, normal_of, xavier_uniform
from mambaout_jax.ops import assign_levels, clip_boxes, decode_boxes, nms, roi_align
from mambaout_jax.ops.sharding import map_rows

# Sides of the grids of bins of boxes, and of the masks.
BOX_BINS, MASK_BINS, MASK_SIDE = 7, 14, 28
# Standard deviations by which the deltas are divided. Reference: Ren et al., Faster R-CNN, 2015.
DELTA_STDS = (0.1, 0.1, 0.2, 0.2)

OPTIONS: Mapping[str, ConfigKey] = MappingProxyType(
    {
        "num_classes": ConfigKey(int, "1..1000000", 80, "number of classes of objects"),
        "channels": ConfigKey(int, "1..65536", 256, "channels of the feature pyramid and of the mask head"),
        "box_channels": ConfigKey(int, "1..65536", 1024, "width of the two hidden layers of the box head"),
        "anchor_scale": ConfigKey(
            float,
            ">0..1000",
            8.0,
            "anchor side as a multiple of the stride of its level; 8 gives anchors of 32 to 512 px at strides 4 to 64",
        ),
        "sampling_ratio": ConfigKey(
            int,
            "0..8",
            2,
            "RoIAlign samples per bin and axis; 0 for an adaptive number as in mmdetection: one per cell, but at most "
            "8",
        ),
        # 1e-5 in mmdetection's Swin and in VMamba; MambaOut's is not published.
        "output_norm_eps": ConfigKey(float, ">0..1", 1e-6, "epsilon of the LayerNorm of each map of the backbone"),
    }
)


class DetectionLimits(NamedTuple):
    """Which boxes of the second stage are detections.

    Args:
        proposals: limits of the first stage.
        score_threshold: in 0..1; detections at or below it are dropped.
        iou_threshold: IoU above which the NMS of a class removes the detection with the lower score.
        max_detections: largest number of detections of an image.
    """

    proposals: ProposalLimits = ProposalLimits()
    score_threshold: float = 0.05
    iou_threshold: float = 0.5
    max_detections: int = 100


class Detections(NamedTuple):
    """The objects of each image, in the order of descending scores; entries that are not valid are padding.

    Args:
        boxes: (x1, y1, x2, y2) in pixels of the canvas.
        scores: probabilities of the classes.
        mask_logits: on a grid of 28x28 over the box.
    """

    boxes: Float[Array, "b n 4"]
    scores: Float[Array, "b n"]
    classes: Int[Array, "b n"]
    valid: Bool[Array, "b n"]
    mask_logits: Float[Array, "b n 28 28"]


class BoxHead(nnx.Module):
    """The box head: class logits and box deltas from features (b, n, 7, 7, c)."""

    def __init__(self, in_chans: int, channels: int, num_classes: int, *, dtype: jnp.dtype):
        sizes = BOX_BINS**2 * in_chans, channels
        self.shared_fcs = nnx.List(
            Linear(size, channels, initializer=xavier_uniform(size, channels), dtype=dtype) for size in sizes
        )
        # In float32: of rounded scores, many are equal.
        output = jnp.dtype(jnp.float32)
        self.fc_cls = Linear(channels, num_classes + 1, initializer=normal_of(0.01), dtype=output)
        self.fc_reg = Linear(channels, 4 * num_classes, initializer=normal_of(0.001), dtype=output)

    def __call__(self, x: Float[Array, "b n 7 7 c"]) -> tuple[Float[Array, "b n k1"], Float[Array, "b n k 4"]]:
        """Compute logits, those of the background last, and the deltas to an object of each class, in float32."""
        x = x.reshape(*x.shape[:2], -1)
        for linear in self.shared_fcs:
            x = jax.nn.relu(linear(x))
        deltas = self.fc_reg(x)
        return self.fc_cls(x), deltas.reshape(*deltas.shape[:2], -1, 4)


class MaskHead(nnx.Module):
    """The mask head: mask logits per class from features (n, 14, 14, c)."""

    def __init__(self, channels: int, num_classes: int, *, dtype: jnp.dtype):
        init = kaiming_normal(9 * channels)
        self.convs = nnx.List(Conv2d(channels, channels, 3, padding=1, initializer=init, dtype=dtype) for _ in range(4))
        self.upsample = ConvTranspose2d(channels, channels, 2, initializer=kaiming_normal(4 * channels), dtype=dtype)
        self.conv_logits = Conv2d(channels, num_classes, 1, initializer=kaiming_normal(num_classes), dtype=dtype)

    def __call__(self, x: Float[Array, "n 14 14 c"]) -> Float[Array, "n 28 28 k"]:
        for conv in self.convs:
            x = jax.nn.relu(conv(x))
        return self.conv_logits(jax.nn.relu(self.upsample(x))).astype(jnp.float32)


class MaskRCNN(DenseModel):
    """Mask R-CNN on a backbone, with the options of `OPTIONS`."""

    def __init__(
        self,
        backbone: nnx.Module,
        *,
        num_classes: int,
        channels: int,
        box_channels: int,
        anchor_scale: float,
        sampling_ratio: int,
        output_norm_eps: float,
        dtype: str,
    ):
        dtype = jnp.dtype(dtype)
        super().__init__(backbone, eps=output_norm_eps, dtype=dtype)
        self.neck = FPN(self.feature_channels, channels, dtype=dtype)
        self.rpn_head = RPNHead(channels, dtype=dtype)
        self.bbox_head = BoxHead(channels, box_channels, num_classes, dtype=dtype)
        self.mask_head = MaskHead(channels, num_classes, dtype=dtype)
        self.anchor_scale = anchor_scale
        self.sampling_ratio = sampling_ratio

    classifier = ("bbox_head", "fc_cls")
    # All of them depend on the classes.
    output_layers = (("bbox_head", "fc_cls"), ("bbox_head", "fc_reg"), ("mask_head", "conv_logits"))

    def levels(self, images: Float[Array, "b h w i"], key: Key[Array, ""] | None) -> list[Float[Array, "b _ _ c"]]:
        """Compute the five maps that both stages read, of strides 4 to 64."""
        return self.neck(self.features(images, key))

    def score_anchors(self, levels: Sequence[Float[Array, "b _ _ c"]]) -> list[AnchorOutputs]:
        """Compute the outputs of the first stage for the anchors of each level."""
        return self.rpn_head(levels)

    def classify(
        self, levels: Sequence[Float[Array, "b _ _ c"]], boxes: Float[Array, "b n 4"]
    ) -> tuple[Float[Array, "b n k1"], Float[Array, "b n k 4"]]:
        """Compute the logits of the classes and, last, the background, and the deltas to an object of each class."""
        return self.bbox_head(self._align(levels, boxes, BOX_BINS))

    def segment(
        self, levels: Sequence[Float[Array, "b _ _ c"]], boxes: Float[Array, "b n 4"], classes: Int[Array, "b n"]
    ) -> Float[Array, "b n 28 28"]:
        """Compute the logits of the pixels of an object of the given class in each box."""
        x = self._align(levels, boxes, MASK_BINS)
        logits = self.mask_head(x.reshape(-1, *x.shape[2:])).reshape(*boxes.shape[:2], MASK_SIDE, MASK_SIDE, -1)
        # A sum, because the gradient of a gather is slow.
        own = jax.nn.one_hot(classes, logits.shape[-1], dtype=logits.dtype)
        return (logits * own[:, :, None, None, :]).sum(-1)

    def detect(
        self,
        images: Float[Array, "b h w i"],
        sizes: Int[Array, "b 2"] | None = None,
        limits: DetectionLimits | None = None,
    ) -> Detections:
        """Find the objects of normalized images.

        Args:
            sizes: (height, width) of the images at the upper left of their canvas; None if they fill it.
            limits: None for those of mmdetection's configs.
        """
        limits = limits or DetectionLimits()
        if sizes is None:
            sizes = jnp.broadcast_to(jnp.array(images.shape[1:3], jnp.int32)[None], (images.shape[0], 2))
        levels = self.levels(images, None)
        anchors = pyramid_anchors(levels, self.feature_strides, self.anchor_scale)
        proposals = propose(self.score_anchors(levels), anchors, sizes, limits.proposals)
        logits, deltas = self.classify(levels, proposals.boxes)
        boxes, scores, classes, valid = select_detections(proposals, logits, deltas, sizes, limits)
        return Detections(boxes, scores, classes, valid, self.segment(levels, boxes, classes))

    def logits(self, images: Float[Array, "b h w i"], key: Key[Array, ""] | None) -> Detections:
        """Find the objects of normalized images that fill their canvas."""
        return self.detect(images)

    def _align(self, levels, boxes, bins):
        maps = levels[: len(self.feature_strides)]
        assigned = assign_levels(boxes, len(maps))
        return roi_align(
            maps, boxes, assigned, strides=self.feature_strides, output_size=bins, sampling_ratio=self.sampling_ratio
        )


def select_detections(
    proposals: Proposals,
    logits: Float[Array, "b n k1"],
    deltas: Float[Array, "b n k 4"],
    sizes: Int[Array, "b 2"],
    limits: DetectionLimits,
) -> tuple[Float[Array, "b m 4"], Float[Array, "b m"], Int[Array, "b m"], Bool[Array, "b m"]]:
    """Return boxes, scores, classes and validity of the best pairs of a box and a class.

    Box regression is class-specific.
    """
    num_classes = deltas.shape[2]
    scores = jax.nn.softmax(logits)[..., :-1]
    boxes = clip_boxes(decode_boxes(proposals.boxes[:, :, None], deltas, DELTA_STDS), sizes)
    valid = proposals.valid[..., None] & (scores > limits.score_threshold)

    def select(boxes, scores, valid):
        boxes, scores = boxes.reshape(-1, 4), scores.reshape(-1)
        classes = jnp.arange(scores.size, dtype=jnp.int32) % num_classes
        kept = nms(
            boxes,
            scores,
            iou_threshold=limits.iou_threshold,
            max_output=limits.max_detections,
            valid=valid.reshape(-1),
            groups=classes,
        )
        found = (jnp.take(x, kept.index, axis=0) for x in (boxes, scores, classes))
        return (*found, kept.valid)

    return map_rows(jax.vmap(select), boxes, scores, valid)


def _from_channels_first(weight):
    """Reorder the columns of the first layer of the box head: (out, c 7 7) to (7 7 c, out)."""
    out, size = weight.shape
    channels = size // BOX_BINS**2
    return weight.reshape(out, channels, BOX_BINS**2).transpose(2, 1, 0).reshape(size, out)


def _to_channels_first(weight):
    size, out = weight.shape
    return weight.reshape(BOX_BINS**2, size // BOX_BINS**2, out).transpose(2, 1, 0).reshape(out, size)


# mmdetection 3.3.0: MaskRCNN with FPN, RPNHead, Shared2FCBBoxHead and FCNMaskHead; `pyramid` is ours.
RULES = (
    *pyramid_rules("pyramid"),
    Rule("neck.lateral_convs.#.conv.*", "neck.lateral_convs.#.*"),
    Rule("neck.fpn_convs.#.conv.*", "neck.fpn_convs.#.*"),
    Rule("rpn_head.*.*", "rpn_head.*.*"),
    Rule(
        "roi_head.bbox_head.shared_fcs.0.weight",
        "bbox_head.shared_fcs.0.weight",
        Transform(_from_channels_first, _to_channels_first),
    ),
    Rule("roi_head.bbox_head.shared_fcs.#.*", "bbox_head.shared_fcs.#.*"),
    Rule("roi_head.bbox_head.*.*", "bbox_head.*.*"),  # fc_cls and fc_reg
    Rule("roi_head.mask_head.convs.#.conv.*", "mask_head.convs.#.*"),
    Rule("roi_head.mask_head.upsample.weight", "mask_head.upsample.weight", permute(2, 3, 0, 1)),
    Rule("roi_head.mask_head.upsample.bias", "mask_head.upsample.bias"),
    Rule("roi_head.mask_head.conv_logits.*", "mask_head.conv_logits.*"),
)

HEAD = Head(
    name="mask_rcnn", module=MaskRCNN, options=OPTIONS, rules=RULES, key_format="mmdet", num_maps=NUM_MAPS, size=800
)
