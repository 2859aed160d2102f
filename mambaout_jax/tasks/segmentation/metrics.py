"""Metrics of segmentation, from the pixels of each class summed over a set of images."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from mambaout_jax.data.label_maps import IGNORED


class Areas(NamedTuple):
    """Numbers of pixels of each class, (..., k): predicted and labeled as it (intersection), predicted, and labeled.

    Pixels that are ignored are in none of them.
    """

    intersection: Array
    predicted: Array
    labeled: Array


def count_areas(predicted: Integer[Array, "h w"], labels: Integer[Array, "h w"], num_classes: int) -> Areas:
    """Count the pixels of each class in a map."""
    classes = jnp.arange(num_classes, dtype=labels.dtype)[None, None, :]
    valid = labels != IGNORED
    # Comparisons instead of a histogram, whose scatters are slow on accelerators; XLA does not store them.
    is_predicted = (predicted.astype(labels.dtype)[..., None] == classes) & valid[..., None]
    is_labeled = labels[..., None] == classes
    masks = is_predicted & is_labeled, is_predicted, is_labeled
    return Areas(*(mask.sum((0, 1), dtype=jnp.int32) for mask in masks))


def sum_areas(areas: Integer[Array, "b k"]) -> Integer[Array, "2 k"]:
    """Sum numbers of pixels over a batch, as multiples of 2^16 and the rest: a sum may exceed 32 bits."""
    return jnp.stack([(areas >> 16).sum(0), (areas & 0xFFFF).sum(0)])


def join_sums(sums: Integer[np.ndarray, "2 k"]) -> Integer[np.ndarray, " k"]:
    """Return the numbers of pixels of `sum_areas`, which may be summed over batches, as 64-bit integers."""
    multiples, rest = np.asarray(sums, np.int64)
    return (multiples << 16) + rest


def iou(areas: Areas) -> Float[np.ndarray, " k"]:
    """Return the intersection over union of each class; NaN for classes that are neither predicted nor labeled."""
    intersection, predicted, labeled = (np.asarray(area, np.float64) for area in areas)
    with np.errstate(invalid="ignore"):
        return intersection / (predicted + labeled - intersection)


def recall(areas: Areas) -> Float[np.ndarray, " k"]:
    """Return the share of the labeled pixels of each class that are predicted; NaN for classes without any."""
    with np.errstate(invalid="ignore"):
        return np.asarray(areas.intersection, np.float64) / np.asarray(areas.labeled, np.float64)


def summarize(areas: Areas) -> dict[str, float]:
    """Return mIoU, mAcc and aAcc in percent: means over the classes that have a value, and over all pixels.

    All are NaN without labeled pixels.
    """
    pixels = float(np.sum(areas.labeled))
    return {
        "miou": _mean_percent(iou(areas)),
        "macc": _mean_percent(recall(areas)),
        "aacc": 100 * float(np.sum(areas.intersection)) / pixels if pixels else math.nan,
    }


def _mean_percent(values: Float[np.ndarray, " k"]) -> float:
    present = values[~np.isnan(values)]
    return 100 * float(present.mean()) if present.size else math.nan
