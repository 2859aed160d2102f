"""Logits of whole images, of windows and of several scales, as mmsegmentation computes them: one image at a time.

The program computes label maps in canvases of static sizes instead; tests compare both.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mambaout_jax.models import Model
from mambaout_jax.ops import resize_bilinear


@partial(jax.jit, static_argnums=0)
def whole_logits(model: Model, variables: dict[str, Any], images: Float[Array, "b h w c"]) -> Float[Array, "b h w k"]:
    """Compute the logits of normalized images in one pass."""
    return resize_bilinear(model.apply(variables, images), images.shape[1:3])


def sliding_logits(
    model: Model, variables: dict[str, Any], images: Float[Array, "b h w c"], crop: int, stride: int
) -> Float[Array, "b h w k"]:
    """Compute the mean over the windows that contain a pixel of the logits of these windows.

    Args:
        crop: side of a window in pixels; less where the image is smaller.
        stride: distance of windows. The last window of an axis ends with the image.
    """
    size = images.shape[1:3]
    height, width = (min(crop, side) for side in size)
    total, hits = 0.0, jnp.zeros((1, *size, 1), jnp.float32)
    for top in _starts(size[0], height, stride):
        for left in _starts(size[1], width, stride):
            window = images[:, top : top + height, left : left + width]
            logits = whole_logits(model, variables, window)
            margins = ((0, 0), (top, size[0] - top - height), (left, size[1] - left - width), (0, 0))
            total += jnp.pad(logits, margins)
            hits += jnp.pad(jnp.ones((1, height, width, 1), jnp.float32), margins)
    return total / hits


def mean_probabilities(logits: Iterable[Float[Array, "b h w k"]]) -> Float[Array, "b h w k"]:
    """Return the mean of the probabilities of several passes over the same images, such as scaled or flipped ones."""
    probabilities = [jax.nn.softmax(of_pass) for of_pass in logits]
    return sum(probabilities) / len(probabilities)


def _starts(side: int, window: int, stride: int) -> list[int]:
    """Return where the windows of an axis start."""
    return [
        min(start, side - window)
        for start in range(0, max(side - window + stride - 1, 0) // stride * stride + 1, stride)
    ]
