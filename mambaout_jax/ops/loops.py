"""Loops with a known maximum number of iterations."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jaxtyping import Array


def bounded_loop(max_iterations: int, condition: Callable[[Any], Array], body: Callable[[Any], Any], state: Any) -> Any:
    """Run `lax.while_loop` in a scope whose name states the maximum number of iterations, for estimates of its cost."""
    with jax.named_scope(f"at_most_{max_iterations}_runs"):
        return lax.while_loop(condition, body, state)
