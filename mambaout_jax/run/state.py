"""What a run carries from step to step."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from mambaout_jax.models import Model


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Hold everything that a step changes.

    Args:
        step: optimizer steps taken.
        variables: {"params", "batch_stats"} that are trained.
        ema: the moving average of `variables`, or None where none is kept.
        opt_state: the optimizer's.
    """

    step: Int[Array, ""]
    variables: dict[str, Any]
    ema: dict[str, Any] | None
    opt_state: optax.OptState


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Progress:
    """Sum up the steps since the last log, on the device, so that no step waits for the host.

    Args:
        steps: how many.
        loss_sum: of their losses.
        learning_rate, grad_norm: of the last one.
        first_nonfinite_step: the first step whose loss or gradient was not finite, or -1.
        nonfinite_learning_rate, nonfinite_loss, nonfinite_grad_norm: those of that step.
    """

    steps: Int[Array, ""]
    loss_sum: Float[Array, ""]
    learning_rate: Float[Array, ""]
    grad_norm: Float[Array, ""]
    first_nonfinite_step: Int[Array, ""]
    nonfinite_learning_rate: Float[Array, ""]
    nonfinite_loss: Float[Array, ""]
    nonfinite_grad_norm: Float[Array, ""]


def init_state(model: Model, optimizer: optax.GradientTransformation, key: Key[Array, ""], *, ema: bool) -> TrainState:
    """Draw the state that a run starts from."""
    variables = model.init(key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        variables=variables,
        ema=jax.tree.map(jnp.copy, variables) if ema else None,
        opt_state=optimizer.init(variables["params"]),
    )


def with_variables(state: TrainState, variables: dict[str, Any]) -> TrainState:
    """Put given weights in the place of drawn ones, in the average too; they are copied."""
    copies = [jax.tree.map(jnp.copy, variables) for _ in range(2)]
    return replace(state, variables=copies[0], ema=None if state.ema is None else copies[1])


def init_step_metrics() -> Progress:
    """Start a new sum."""
    zero, none = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32)
    return Progress(none, zero, zero, zero, none - 1, zero, zero, zero)
