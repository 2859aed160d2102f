"""Losses of segmentation."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from mambaout_jax.ops import resize_bilinear

# The label of pixels that have no class.
IGNORED = 255


def pixel_cross_entropy(logits: Float[Array, "b h w k"], labels: Integer[Array, "b H W"]) -> Float[Array, "b H W"]:
    """Compute the cross-entropy of each pixel, from logits that are resized to the labels; 0 for ignored pixels."""
    log_probs = jax.nn.log_softmax(resize_bilinear(logits, labels.shape[1:]))
    valid = labels != IGNORED
    of_label = jnp.take_along_axis(log_probs, jnp.where(valid, labels, 0)[..., None].astype(jnp.int32), axis=-1)
    return jnp.where(valid, -of_label[..., 0], 0.0)
