"""The ONNX operators of functions of `ops`, which jaxprs contain as calls with a custom derivative."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Jaxpr, Literal

from mambaout_jax.export.onnx_graph import Rule, opened


def _layer_norm(graph, equation, inputs):
    x = graph.full(inputs[0], equation.invars[0].aval.shape)
    eps = _literal_added(opened(equation.params["call_jaxpr"])[0])
    return [graph.add("LayerNormalization", [x, *inputs[1:]], x.shape, x.dtype, axis=-1, epsilon=eps)]


def _literal_added(jaxpr: Jaxpr) -> float:
    """Return the only number that a jaxpr adds."""
    added = [
        float(atom.val)
        for equation in jaxpr.eqns
        if equation.primitive.name == "add"
        for atom in equation.invars
        if isinstance(atom, Literal)
    ]
    [number] = added
    return number


def _gelu(graph, equation, inputs):
    return [graph.add("Gelu", inputs, inputs[0].shape, inputs[0].dtype)]


def _recurrence(graph, equation, inputs):
    """Translate the recurrence of a selective scan into a loop over the steps with two operations in its body."""
    (*inputs,) = (graph.full(value, var.aval.shape) for value, var in zip(inputs, equation.invars, strict=True))
    arguments = [jax.ShapeDtypeStruct(value.shape, value.dtype) for value in inputs]
    jaxpr = jax.make_jaxpr(_scan_step_by_step)(*arguments)
    y, last = graph.run(jaxpr.jaxpr, jaxpr.consts, inputs)
    return [y, last, last]  # the states between chunks, which come third, are for gradients


def _scan_step_by_step(u, delta, A, B, C, state):
    """Compute y (b, l, d) and the last state (b, d, n), with the states of all steps in memory, groups in front."""
    b, length, d = u.shape
    n = A.shape[1]
    groups = next((x.shape[2] for x in (B, C) if x.ndim == 4), 1)
    B, C = (x.swapaxes(0, 1) if x.ndim == 4 else x for x in (B, C))

    def over_channels(x):  # (l, b, g, 1, c)
        return x.swapaxes(0, 1).reshape(length, b, groups, 1, d // groups)

    def by_state(x):  # (..., d, n) -> (..., g, n, c)
        return x.reshape(*x.shape[:-2], groups, d // groups, n).swapaxes(-1, -2)

    decay = jnp.exp(over_channels(delta) * by_state(A)[None, None])
    added = over_channels(delta * u) * (B[..., None] if B.ndim == 4 else by_state(B)[None, None])

    def step(state, now):
        state = now[0] * state + now[1]
        return state, state

    last, states = lax.scan(step, by_state(state), (decay, added))
    y = C[..., None, :] @ states if C.ndim == 4 else (states * by_state(C)[None, None]).sum(3)
    return y.reshape(length, b, d).swapaxes(0, 1), last.swapaxes(-1, -2).reshape(b, d, n)


# Functions of `ops` that have a translation of their own, by the names of their calls.
FUNCTIONS: Mapping[str, Rule] = {"_by_platform": _recurrence, "_layer_norm": _layer_norm, "gelu": _gelu}
