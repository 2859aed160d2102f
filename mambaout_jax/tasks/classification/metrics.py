"""Accuracy and loss of logits, and the most probable classes."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

# The number of classes in each stored prediction.
NUM_KEPT = 5


def hits_and_loss(
    logits: Float[Array, "b k"], labels: Int[Array, "b m"], counted: Bool[Array, "b"]
) -> dict[str, Array]:
    """Compute the sums of top-1 hits, top-5 hits, losses and images over the counted rows.

    Labels of -1 are padding. A row is a hit if one of its labels is among the top classes. Its loss is the
    cross-entropy against the uniform distribution over its labels.
    """
    rank = rank_of_labels(logits, labels)
    log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(labels, 0), axis=1)
    loss = -jnp.sum(jnp.where(labels >= 0, log_probs, 0.0), axis=1) / jnp.maximum(jnp.sum(labels >= 0, axis=1), 1)
    return {
        "top1": jnp.sum(counted & (rank < 1)),
        "top5": jnp.sum(counted & (rank < 5)),
        "loss": jnp.sum(jnp.where(counted, loss, 0.0)),
        "count": jnp.sum(counted),
    }


def rank_of_labels(logits: Float[Array, "b k"], labels: Int[Array, "b m"]) -> Int[Array, "b"]:
    """Compute the rank of the best label of each row: the classes before it in a stable sort by descending logit.

    Labels of -1 are padding. NaN logits rank first, so that a row with NaN is never a hit. Counting keeps rows on their
    device, whereas `top_k` would gather them.
    """
    num_classes = logits.shape[1]
    given = jnp.where(labels >= 0, jnp.take_along_axis(logits, jnp.maximum(labels, 0), axis=1), -jnp.inf)
    best = jnp.max(given, axis=1, keepdims=True)
    first = jnp.min(jnp.where((labels >= 0) & (given == best), labels, num_classes), axis=1, keepdims=True)
    earlier = jnp.arange(num_classes)[None] < first
    return jnp.sum(~(logits <= best) | ((logits == best) & earlier), axis=1)


def top_classes(logits: Float[np.ndarray, "b k"]) -> tuple[np.ndarray, np.ndarray]:
    """Return the most probable classes, int32 (b, min(5, k)), and their probabilities, float32."""
    logits = logits.astype(np.float64)
    classes = np.argsort(-logits, axis=1, kind="stable")[:, :NUM_KEPT]
    exps = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = np.take_along_axis(exps / exps.sum(axis=1, keepdims=True), classes, axis=1)
    return classes.astype(np.int32), probabilities.astype(np.float32)
