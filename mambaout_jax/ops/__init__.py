"""Array functions without learned parameters."""

from mambaout_jax.ops.activations import gelu
from mambaout_jax.ops.boxes import (
    box_area,
    box_intersection,
    box_iou,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    make_anchors,
    valid_cells,
)
from mambaout_jax.ops.conv import conv2d
from mambaout_jax.ops.depthwise import depthwise_conv2d
from mambaout_jax.ops.gated_cnn import GatedCNNWeights, gated_cnn_block
from mambaout_jax.ops.images import denormalize_images, normalize_images
from mambaout_jax.ops.kernel_choice import KERNELS, KERNELS_VARIABLE, kernels, use_kernels
from mambaout_jax.ops.matmul import matmul
from mambaout_jax.ops.nms import NMSResult, nms
from mambaout_jax.ops.norm import batch_norm, layer_norm, normalize, rms_norm
from mambaout_jax.ops.resize import adaptive_avg_pool, resize_bilinear
from mambaout_jax.ops.roi_align import assign_levels, crop_masks, roi_align
from mambaout_jax.ops.scan_order import SCAN_ORDERS, flatten_map, unflatten_map
from mambaout_jax.ops.selective_scan import IMPLS as SCAN_IMPLS
from mambaout_jax.ops.selective_scan import selective_scan, selective_scan_step
from mambaout_jax.ops.strided import strided_conv2d

__all__ = [
    "KERNELS",
    "KERNELS_VARIABLE",
    "SCAN_IMPLS",
    "SCAN_ORDERS",
    "GatedCNNWeights",
    "NMSResult",
    "adaptive_avg_pool",
    "assign_levels",
    "batch_norm",
    "box_area",
    "box_intersection",
    "box_iou",
    "clip_boxes",
    "conv2d",
    "crop_masks",
    "decode_boxes",
    "denormalize_images",
    "depthwise_conv2d",
    "encode_boxes",
    "flatten_map",
    "gated_cnn_block",
    "gelu",
    "kernels",
    "layer_norm",
    "make_anchors",
    "matmul",
    "nms",
    "normalize",
    "normalize_images",
    "resize_bilinear",
    "rms_norm",
    "roi_align",
    "selective_scan",
    "selective_scan_step",
    "strided_conv2d",
    "unflatten_map",
    "use_kernels",
    "valid_cells",
]
