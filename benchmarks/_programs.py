"""Inputs and programs that several benchmarks time."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mambaout_jax.models import Model

STATES = 16
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.05


def draw_scan(batch: int, length: int, channels: int) -> list[np.ndarray]:
    """Draw u, delta, A, B and C of a selective scan with `STATES` states in float64; delta is positive."""
    rng = np.random.default_rng(0)
    u, delta = rng.normal(size=(2, batch, length, channels))
    B, C = rng.normal(size=(2, batch, length, STATES))
    A = -np.tile(np.arange(1.0, STATES + 1), (channels, 1))
    return [u, np.logaddexp(0, delta - 2), A, B, C]


def model_passes(
    model: Model, images: np.ndarray, labels: np.ndarray, compiler_options: Mapping[str, Any] | None = None
) -> dict[str, Callable[[], Any]]:
    """Return the forward pass and the training step (forward, backward, AdamW) of a model, on the first device."""
    variables = model.init(jax.random.key(0))
    images, labels = jax.device_put((images, labels))
    optimizer = optax.adamw(
        LEARNING_RATE, weight_decay=WEIGHT_DECAY, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
    )
    apply = jax.jit(model.apply, compiler_options=compiler_options)

    def loss(params):
        logits, _ = model.apply_train({**variables, "params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(params, state):
        gradients = jax.grad(loss)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step, donate_argnums=(0, 1))
    # A copy, because the step donates its arguments.
    params = jax.tree.map(jnp.copy, variables["params"])
    carried = [(params, optimizer.init(params))]

    def train():
        carried.append(step(*carried.pop()))
        return carried[-1]

    return {"forward": lambda: apply(variables, images), "training step": train}
