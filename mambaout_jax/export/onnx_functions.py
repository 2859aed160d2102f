"""The ONNX operators of functions of `ops`, which jaxprs contain as calls."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Jaxpr, Literal

from mambaout_jax.export.onnx_graph import Rule, constant_value, opened, unsupported
from mambaout_jax.ops.roi_align import Taps, gather_bins


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


def _gather_bins(graph, equation, inputs):
    """Translate the sum over taps of RoIAlign; an adaptive number of them is the largest one, with weights of zero."""
    *arguments, used = inputs if len(inputs) == 6 else (*inputs, None)
    if used is None:
        inner, consts = opened(equation.params["call_jaxpr"])
        return graph.run(inner, consts, inputs)
    arrays = [jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype) for var in equation.invars[:5]]

    def all_taps(table, *taps):
        rows, columns = Taps(*taps[:2]), Taps(*taps[2:])
        return jax.vmap(gather_bins, in_axes=(0, 0, 0, None))(table, rows, columns, None)

    jaxpr = jax.make_jaxpr(all_taps)(*arrays)
    return graph.run(jaxpr.jaxpr, jaxpr.consts, arguments)


def _suppress(graph, equation, inputs):
    """Translate non-maximum suppression of the boxes of each image of a batch."""
    *_, groups, iou_threshold = inputs
    avals = [var.aval for var in equation.invars[:3]]
    if avals[0].ndim != 3 or groups.data is None or iou_threshold.data is None:
        raise unsupported("non-maximum suppression of a single image, or of groups that depend on the images")
    boxes, scores, valid = (graph.full(x, aval.shape) for x, aval in zip(inputs[:3], avals, strict=True))
    (b, n, _), max_output = avals[0].shape, equation.outvars[0].aval.shape[-1]
    per_group = [graph.reshape(x, (b, 1, n)) for x in (valid, scores)]
    lowest, nothing = np.array(np.finfo(np.float32).min), np.array(-np.inf, np.float32)
    # Groups are ONNX's classes: a box has a score in its own one.
    of_group = np.broadcast_to(groups.data, (n,)).reshape(1, 1, n)
    numbers = np.unique(of_group).reshape(1, -1, 1)
    is_member = graph.add("Equal", [of_group, numbers], (1, numbers.size, n), bool)
    takes_part = graph.add("And", [per_group[0], is_member], (b, numbers.size, n), bool)
    by_group = graph.add("Where", [takes_part, per_group[1], nothing], (b, numbers.size, n), np.float32)
    limits = [np.array(max_output), iou_threshold.data.astype(np.float32), lowest]
    kept = graph.add("NonMaxSuppression", [boxes, by_group, *limits], ("kept", 3), np.int64)
    places = graph.add("Gather", [kept, np.array([0, 2])], ("kept", 2), np.int64, axis=1)
    count = graph.add("Shape", [kept], (1,), np.int64, start=0, end=1)
    true = graph.add("Expand", [np.array(True), count], ("kept",), bool)
    none = graph.full(constant_value(False), (b, n))
    is_kept = graph.add("ScatterND", [none, places, true], (b, n), bool)
    best = graph.add("Where", [is_kept, scores, nothing], (b, n), np.float32)
    k = min(n, max_output)
    best, index = graph.top_k(best, k)
    valid = graph.add("Greater", [best, lowest], (b, k), bool)
    index = graph.add("Where", [valid, graph.cast(index, np.int32), np.array(0, np.int32)], (b, k), np.int32)
    if k < max_output:
        widths, fill = np.array([0, 0, 0, max_output - k]), (np.array(0, np.int32), np.array(False))
        index, valid = (
            graph.add("Pad", [x, widths, value], (b, max_output), x.dtype)
            for x, value in zip((index, valid), fill, strict=True)
        )
    return [index, valid]


# Functions of `ops` that have a translation of their own, by the names of their calls.
FUNCTIONS: Mapping[str, Rule] = {
    "_by_platform": _recurrence,
    "_layer_norm": _layer_norm,
    "gather_bins": _gather_bins,
    "gelu": _gelu,
}
JITTED: Mapping[str, Rule] = {"_suppress": _suppress}
