"""Losses of segmentation."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from mambaout_jax.data.label_maps import IGNORED
from mambaout_jax.ops import resize_bilinear


def pixel_cross_entropy(logits: Float[Array, "b h w k"], labels: Integer[Array, "b H W"]) -> Float[Array, "b H W"]:
    """Compute the cross-entropy of each pixel, from logits that are resized to the labels; 0 for ignored pixels."""
    logits = resize_bilinear(logits, labels.shape[1:])
    classes = jnp.arange(logits.shape[-1], dtype=labels.dtype)[None, None, None, :]
    # A comparison instead of a lookup, whose gradient is a scatter.
    of_label = jnp.where(labels[..., None] == classes, logits, 0.0).sum(-1)
    return jnp.where(labels == IGNORED, 0.0, jax.nn.logsumexp(logits, axis=-1) - of_label)
