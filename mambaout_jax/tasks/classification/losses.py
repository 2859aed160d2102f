"""Losses, computed in float32 for logits of any dtype."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def smooth_one_hot(labels: Int[Array, "b"], num_classes: int, smoothing: float) -> Float[Array, "b k"]:
    """Return one-hot targets with label smoothing.

    Reference: Szegedy et al., Rethinking the Inception Architecture, 2016.
    """
    return jax.nn.one_hot(labels, num_classes) * (1.0 - smoothing) + smoothing / num_classes


def cross_entropy(logits: Float[Array, "b k"], targets: Float[Array, "b k"]) -> Float[Array, "b"]:
    """Compute -sum(target * log_softmax(logits)) for each sample."""
    return -jnp.sum(targets * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)


def kl_divergence(logits: Float[Array, "b k"], targets: Float[Array, "b k"]) -> Float[Array, "b"]:
    """Compute sum(target * (log(target) - log_softmax(logits))) for each sample; 0 for targets of zeros."""
    return cross_entropy(logits, targets) - jax.scipy.special.entr(targets).sum(axis=-1)
