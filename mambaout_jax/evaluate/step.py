"""One evaluation step, as a pure function to be jitted."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mambaout_jax import distributed
from mambaout_jax.models import Model
from mambaout_jax.tasks.classification.mixing import normalize

Batch = dict[str, Array]


def make_eval_step(
    model: Model,
) -> Callable[[dict[str, Any], Batch, Bool[Array, "k"]], tuple[dict[str, Array], Float[Array, "b k"]]]:
    """Build the function (variables, batch, ranked) -> (sums, logits).

    Sums of top-1 and top-5 hits, loss and count are over the rows that `mask` keeps. A row has the labels of
    `label` (b, m) that are not -1: it is a hit if one of them is among the first classes, and its loss is the
    cross-entropy against the uniform distribution over them. Classes that are not `ranked` have a logit of -inf.
    """

    def eval_step(variables: dict[str, Any], batch: Batch, ranked: Bool[Array, "k"]):
        images = normalize(batch["image"], model.input_spec.mean, model.input_spec.std)
        logits = jnp.where(ranked, model.apply(distributed.replicate(variables), images), -jnp.inf)
        mask, labels = batch["mask"], batch["label"]
        rank = rank_of_labels(logits, labels)
        log_odds = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(labels, 0), axis=1)
        loss = -jnp.sum(jnp.where(labels >= 0, log_odds, 0.0), axis=1) / jnp.maximum(jnp.sum(labels >= 0, axis=1), 1)
        sums = {
            "top1": jnp.sum(mask & (rank < 1)),
            "top5": jnp.sum(mask & (rank < 5)),
            "loss": jnp.sum(jnp.where(mask, loss, 0.0)),
            "count": jnp.sum(mask),
        }
        return sums, logits

    return eval_step


def rank_of_labels(logits: Float[Array, "b k"], labels: Int[Array, "b m"]) -> Int[Array, "b"]:
    """Count the classes that come before the best label, as a stable sort by falling logit would place them.

    Labels of -1 are none. A logit that is not a number comes before all others, so that it never counts as a hit.
    Counting keeps rows on their device, where `top_k` would gather them.
    """
    num_classes = logits.shape[1]
    given = jnp.where(labels >= 0, jnp.take_along_axis(logits, jnp.maximum(labels, 0), axis=1), -jnp.inf)
    best = jnp.max(given, axis=1, keepdims=True)
    first = jnp.min(jnp.where((labels >= 0) & (given == best), labels, num_classes), axis=1, keepdims=True)
    earlier = jnp.arange(num_classes)[None] < first
    return jnp.sum(~(logits <= best) | ((logits == best) & earlier), axis=1)
