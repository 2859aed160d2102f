"""The training state: everything that a step updates and a checkpoint stores."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from mambaout_jax.models import Model


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """The training state.

    Args:
        step: number of completed optimizer steps.
        variables: the trained {"params", "batch_stats"}.
        ema: the exponential moving average of `variables`, or None.
        opt_state: the state of the optimizer.
    """

    step: Int[Array, ""]
    variables: dict[str, Any]
    ema: dict[str, Any] | None
    opt_state: optax.OptState

    @property
    def weights(self) -> dict[str, Any]:
        """The variables by kind of weights: "raw" and, if there is an average, "ema"."""
        return {"raw": self.variables} if self.ema is None else {"raw": self.variables, "ema": self.ema}

    @property
    def best_weights(self) -> str:
        """The kind of weights that is reported first: "ema" if there is an average, else "raw"."""
        return "raw" if self.ema is None else "ema"


def init_state(model: Model, optimizer: optax.GradientTransformation, key: Key[Array, ""], *, ema: bool) -> TrainState:
    """Initialize the state of a new run."""
    variables = model.init(key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        variables=variables,
        ema=jax.tree.map(jnp.copy, variables) if ema else None,
        opt_state=optimizer.init(variables["params"]),
    )


def with_variables(state: TrainState, variables: dict[str, Any]) -> TrainState:
    """Return the state with copies of `variables` as its weights and their average."""
    copies = [jax.tree.map(jnp.copy, variables) for _ in range(2)]
    return replace(state, variables=copies[0], ema=None if state.ema is None else copies[1])
