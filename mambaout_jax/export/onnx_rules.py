"""The ONNX operators of the primitives of jaxprs."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr

from mambaout_jax.export.onnx_graph import Graph, Rule, Value, constant_value, reachable, unsupported, value_info
from mambaout_jax.extras import importing
from mambaout_jax.models.jaxprs import inner_jaxprs

with importing("export", f"{__name__} requires onnx"):
    from onnx import helper

_END = np.iinfo(np.int64).max
ELEMENTWISE: Mapping[str, str] = {
    "abs": "Abs",
    "add": "Add",
    "add_any": "Add",
    "and": "And",
    "ceil": "Ceil",
    "cos": "Cos",
    "div": "Div",
    "eq": "Equal",
    "erf": "Erf",
    "exp": "Exp",
    "floor": "Floor",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "le": "LessOrEqual",
    "log": "Log",
    "logistic": "Sigmoid",
    "lt": "Less",
    "max": "Max",
    "min": "Min",
    "mul": "Mul",
    "neg": "Neg",
    "not": "Not",
    "or": "Or",
    "pow": "Pow",
    "sign": "Sign",
    "sin": "Sin",
    "sqrt": "Sqrt",
    "sub": "Sub",
    "tanh": "Tanh",
}


def _identity(graph, equation, inputs):
    return inputs


def _square(graph, equation, inputs):
    return [graph.elementwise("Mul", inputs * 2, equation.outvars[0].aval)]


def _rsqrt(graph, equation, inputs):
    aval = equation.outvars[0].aval
    return [graph.elementwise("Reciprocal", [graph.elementwise("Sqrt", inputs, aval)], aval)]


def _log1p(graph, equation, inputs):
    aval = equation.outvars[0].aval
    return [
        graph.elementwise("Log", [graph.elementwise("Add", [inputs[0], constant_value(1, aval.dtype)], aval)], aval)
    ]


def _log2(graph, equation, inputs):
    aval = equation.outvars[0].aval
    factor = constant_value(1 / math.log(2), aval.dtype)
    return [graph.elementwise("Mul", [graph.elementwise("Log", inputs, aval), factor], aval)]


def _not_equal(graph, equation, inputs):
    aval = equation.outvars[0].aval
    return [graph.elementwise("Not", [graph.elementwise("Equal", inputs, aval)], aval)]


def _integer_pow(graph, equation, inputs):
    aval = equation.outvars[0].aval
    exponent = constant_value(equation.params["y"], aval.dtype)
    return [graph.elementwise("Pow", [inputs[0], exponent], aval)]


def _round(graph, equation, inputs):
    if equation.params["rounding_method"] != lax.RoundingMethod.TO_NEAREST_EVEN:
        raise unsupported("rounding of halves away from zero")
    return [graph.elementwise("Round", inputs, equation.outvars[0].aval)]


def _select(graph, equation, inputs):
    which, *cases = inputs
    if len(cases) != 2 or which.dtype != bool:
        raise unsupported("a selection from several arrays")
    aval = equation.outvars[0].aval
    if aval.dtype == bool:  # onnxruntime has no `Where` for booleans
        other = graph.elementwise("Not", [which], aval)
        parts = [graph.elementwise("And", pair, aval) for pair in ([which, cases[1]], [other, cases[0]])]
        return [graph.elementwise("Or", parts, aval)]
    return [graph.elementwise("Where", [which, cases[1], cases[0]], aval)]


def _cast(graph, equation, inputs):
    [value], dtype = inputs, equation.outvars[0].aval.dtype
    return [graph.cast(value, dtype)]


def _broadcast_in_dim(graph, equation, inputs):
    [value, *_] = inputs
    kept = equation.params["broadcast_dimensions"]
    shape = [1] * len(equation.params["shape"])
    for axis, dim in zip(kept, value.shape, strict=True):
        shape[axis] = dim
    return [graph.reshape(value, tuple(shape))]


def _reshape(graph, equation, inputs):
    return [graph.reshape(graph.full(inputs[0], equation.invars[0].aval.shape), equation.outvars[0].aval.shape)]


def _transpose(graph, equation, inputs):
    return [graph.transpose(inputs[0], equation.params["permutation"])]


def _slice(graph, equation, inputs):
    params, shape = equation.params, equation.invars[0].aval.shape
    steps = params["strides"] or (1,) * len(shape)
    value = graph.full(inputs[0], shape)
    ranges = zip(shape, params["start_indices"], params["limit_indices"], steps, strict=True)
    cut = [
        (axis, start, limit if isinstance(limit, int) else _END, step)
        for axis, (dim, start, limit, step) in enumerate(ranges)
        if (start, limit, step) != (0, dim, 1)
    ]
    if not cut:
        return [value]
    axes, starts, ends, steps = zip(*cut, strict=True)
    indices = [np.array(each, np.int64) for each in (starts, ends, axes, steps)]
    return [graph.add("Slice", [value, *indices], equation.outvars[0].aval.shape, value.dtype)]


def _reverse(graph, equation, inputs):
    axes = equation.params["dimensions"]
    value = graph.full(inputs[0], equation.invars[0].aval.shape)
    indices = [np.full(len(axes), end, np.int64) for end in (-1, -_END)]
    indices += [np.array(axes, np.int64), np.full(len(axes), -1, np.int64)]
    return [graph.add("Slice", [value, *indices], value.shape, value.dtype)]


def _split(graph, equation, inputs):
    value = graph.full(inputs[0], equation.invars[0].aval.shape)
    axis, results, start = equation.params["axis"], [], 0
    for size, var in zip(equation.params["sizes"], equation.outvars, strict=True):
        indices = [np.array([each], np.int64) for each in (start, start + size, axis)]
        results.append(graph.add("Slice", [value, *indices], var.aval.shape, value.dtype))
        start += size
    return results


def _concatenate(graph, equation, inputs):
    parts = [graph.full(value, var.aval.shape) for value, var in zip(inputs, equation.invars, strict=True)]
    out = equation.outvars[0].aval
    return [graph.add("Concat", parts, out.shape, out.dtype, axis=equation.params["dimension"])]


def _stack(graph, equation, inputs):
    out, axis = equation.outvars[0].aval, equation.params["axis"]
    shape = (*out.shape[:axis], 1, *out.shape[axis + 1 :])
    parts = [
        graph.reshape(graph.full(value, var.aval.shape), shape)
        for value, var in zip(inputs, equation.invars, strict=True)
    ]
    return [graph.add("Concat", parts, out.shape, out.dtype, axis=axis)]


def _pad(graph, equation, inputs):
    value, fill = inputs
    low, high, interior = zip(*equation.params["padding_config"], strict=True)
    if any(interior):
        raise unsupported("padding between elements")
    value = graph.full(value, equation.invars[0].aval.shape)
    out = equation.outvars[0].aval
    if min(*low, *high) >= 0:
        return [graph.add("Pad", [value, np.array([*low, *high], np.int64), fill], out.shape, out.dtype)]
    raise unsupported("negative padding")


def _gather(graph, equation, inputs):
    """Translate the selection of a constant range of several axes, or of elements along one axis.

    Indices lie within the array, as those of models do, unless JAX is asked to clip them.
    """
    value, indices = inputs
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    shape, out = equation.invars[0].aval.shape, equation.outvars[0].aval
    axes, rank = numbers.start_index_map, len(equation.invars[1].aval.shape) - 1
    value = graph.full(value, shape)
    others = [size == dim for i, (size, dim) in enumerate(zip(sizes, shape, strict=True)) if i not in axes]
    if not numbers.operand_batching_dims and all(others):
        if rank == 0 and indices.data is not None:
            starts = [int(np.clip(i, 0, shape[axis] - sizes[axis])) for i, axis in zip(indices.data, axes, strict=True)]
            ends = [start + sizes[axis] for start, axis in zip(starts, axes, strict=True)]
            bounds = [np.array(each, np.int64) for each in (starts, ends, axes)]
            return [graph.reshape(graph.add("Slice", [value, *bounds], sizes, out.dtype), out.shape)]
        if len(axes) == 1 and sizes[axes[0]] == 1:
            [axis] = axes
            if numbers.offset_dims == (*range(axis), *range(axis + rank, len(out.shape))):
                indices = graph.reshape(indices, equation.invars[1].aval.shape[:-1])
                return [graph.add("Gather", [value, indices], out.shape, out.dtype, axis=axis)]
    batch = tuple(range(len(numbers.operand_batching_dims)))
    axis, leading = len(batch), rank - len(batch)
    if (
        batch
        and tuple(numbers.operand_batching_dims) == tuple(numbers.start_indices_batching_dims) == batch
        and tuple(axes) == tuple(numbers.collapsed_slice_dims) == (axis,)
        and sizes[axis + 1 :] == shape[axis + 1 :]
        and tuple(numbers.offset_dims) == tuple(range(axis + leading, len(out.shape)))
    ):
        indices = graph.cast(graph.full(indices, equation.invars[1].aval.shape), np.int64)
        if equation.params["mode"] == lax.GatherScatterMode.CLIP:
            bounds = [np.array(each) for each in (0, shape[axis] - 1)]
            indices = graph.add("Clip", [indices, *bounds], indices.shape, np.int64)
        return [graph.add("GatherND", [value, indices], out.shape, out.dtype, batch_dims=len(batch))]
    raise unsupported("a gather of several ranges")


def _tile(graph, equation, inputs):
    value, out = graph.full(inputs[0], equation.invars[0].aval.shape), equation.outvars[0].aval
    return [graph.add("Tile", [value, np.array(equation.params["reps"], np.int64)], out.shape, out.dtype)]


def _reduce(op):
    def rule(graph, equation, inputs):
        out, axes = equation.outvars[0].aval, equation.params["axes"]
        value = graph.full(inputs[0], equation.invars[0].aval.shape)
        return [graph.add(op, [value, np.array(axes, np.int64)], out.shape, out.dtype, keepdims=0)]

    return rule


def _argmax(graph, equation, inputs):
    out, [axis] = equation.outvars[0].aval, equation.params["axes"]
    value = graph.full(inputs[0], equation.invars[0].aval.shape)
    found = graph.add("ArgMax", [value], out.shape, np.int64, axis=axis, keepdims=0)
    return [graph.cast(found, out.dtype)]


def _reduce_bool(op):
    def rule(graph, equation, inputs):
        out, axes = equation.outvars[0].aval, equation.params["axes"]
        value = graph.cast(graph.full(inputs[0], equation.invars[0].aval.shape), np.int32)
        found = graph.add(op, [value, np.array(axes, np.int64)], out.shape, np.int32, keepdims=0)
        return [graph.cast(found, out.dtype)]

    return rule


def _top_k(graph, equation, inputs):
    value, params = graph.full(inputs[0], equation.invars[0].aval.shape), equation.params
    if params.get("axis", value.shape[-1]) not in (-1, len(value.shape) - 1):
        raise unsupported("a selection of the largest elements along an axis other than the last")
    largest, index = graph.top_k(value, params["k"])
    return [largest, graph.cast(index, equation.outvars[1].aval.dtype)]


def _cumsum(graph, equation, inputs):
    value, params = graph.full(inputs[0], equation.invars[0].aval.shape), equation.params
    axis = np.array(params["axis"], np.int64)
    return [graph.add("CumSum", [value, axis], value.shape, value.dtype, reverse=int(params["reverse"]))]


def _dot_general(graph, equation, inputs):
    lhs, rhs = (graph.full(value, var.aval.shape) for value, var in zip(inputs, equation.invars, strict=True))
    (lhs_sum, rhs_sum), (lhs_batch, rhs_batch) = equation.params["dimension_numbers"]
    out = equation.outvars[0].aval
    lhs_free = [axis for axis in range(len(lhs.shape)) if axis not in (*lhs_sum, *lhs_batch)]
    rhs_free = [axis for axis in range(len(rhs.shape)) if axis not in (*rhs_sum, *rhs_batch)]
    lhs = graph.transpose(lhs, [*lhs_batch, *lhs_free, *lhs_sum])
    rhs = graph.transpose(rhs, [*rhs_batch, *rhs_sum, *rhs_free])
    batch = lhs.shape[: len(lhs_batch)]
    if len(lhs_sum) != 1 or len(rhs_free) != 1 or (batch and len(lhs_free) != 1):
        rows, columns = lhs.shape[len(batch) :][: len(lhs_free)], rhs.shape[len(rhs.shape) - len(rhs_free) :]
        summed = math.prod(lhs.shape[len(batch) + len(lhs_free) :])
        lhs = graph.reshape(lhs, (*batch, math.prod(rows), summed))
        rhs = graph.reshape(rhs, (*batch, summed, math.prod(columns)))
    product = graph.add("MatMul", [lhs, rhs], (*lhs.shape[:-1], rhs.shape[-1]), out.dtype)
    return [graph.reshape(product, out.shape)]


def _convolution(graph, equation, inputs):
    params, out = equation.params, equation.outvars[0].aval
    if math.prod(params["lhs_dilation"]) != 1 or params["batch_group_count"] != 1:
        raise unsupported("a transposed convolution")
    numbers = params["dimension_numbers"]
    x, kernel = (graph.full(value, var.aval.shape) for value, var in zip(inputs, equation.invars, strict=True))
    low, high = zip(*params["padding"], strict=True)
    attributes = {
        "strides": list(params["window_strides"]),
        "pads": [*low, *high],
        "dilations": list(params["rhs_dilation"]),
        "group": params["feature_group_count"],
    }
    arguments = [graph.transpose(x, numbers.lhs_spec), graph.transpose(kernel, numbers.rhs_spec)]
    y = graph.add("Conv", arguments, [out.shape[axis] for axis in numbers.out_spec], out.dtype, **attributes)
    return [graph.transpose(y, np.argsort(numbers.out_spec).tolist())]


def _pool(op):
    def rule(graph, equation, inputs):
        """Translate a sum or a maximum over windows of two axes of maps (b, h, w, c)."""
        params, out = equation.params, equation.outvars[0].aval
        window, strides, padding = (params[key] for key in ("window_dimensions", "window_strides", "padding"))
        dilations = (*params["base_dilation"], *params["window_dilation"])
        if len(window) != 4 or math.prod((window[0], window[3], *dilations)) != 1:
            raise unsupported("windows over axes other than rows and columns")
        x = graph.transpose(graph.full(inputs[0], equation.invars[0].aval.shape), (0, 3, 1, 2))
        pads = [padding[axis][side] for side in (0, 1) for axis in (1, 2)]
        attributes = {"kernel_shape": list(window[1:3]), "strides": list(strides[1:3]), "pads": pads}
        if op == "AveragePool":
            attributes["count_include_pad"] = 1
        shape = [out.shape[axis] for axis in (0, 3, 1, 2)]
        y = graph.add(op, [x], shape, out.dtype, **attributes)
        if op == "AveragePool":
            y = graph.add("Mul", [y, np.array(math.prod(window), out.dtype)], shape, out.dtype)
        return [graph.transpose(y, (0, 2, 3, 1))]

    return rule


def _cond(graph, equation, inputs):
    """Translate the shortest form of a program with forms for several platforms."""
    index, *arguments = inputs
    branches = equation.params["branches"]
    if equation.params.get("branches_platforms") is not None:
        branch = min((each for each in branches if not _contains(each.jaxpr, "pallas_call")), key=_length)
    elif index.data is not None:
        branch = branches[int(np.clip(index.data, 0, len(branches) - 1))]
    else:
        raise unsupported("a condition that depends on the images")
    return graph.run(branch.jaxpr, branch.consts, arguments)


def _length(jaxpr: Any) -> int:
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    return len(jaxpr.eqns) + sum(_length(inner) for equation in jaxpr.eqns for inner in inner_jaxprs(equation.params))


def _contains(jaxpr: Jaxpr, primitive: str) -> bool:
    return any(
        equation.primitive.name == primitive
        or any(_contains(inner, primitive) for inner in inner_jaxprs(equation.params))
        for equation in jaxpr.eqns
    )


def _scan(graph, equation, inputs):
    params, avals = equation.params, [var.aval for var in equation.invars]
    inner = params["jaxpr"].jaxpr
    # Arguments are constants, the state, and sequences, which alone lose an axis inside.
    num_carry = sum(var.aval.ndim == out.aval.ndim for var, out in zip(inner.outvars, equation.outvars, strict=True))
    num_moving = sum(var.aval.ndim < aval.ndim for var, aval in zip(inner.invars, avals, strict=True))
    num_consts = len(avals) - num_carry - num_moving
    full = [graph.full(value, aval.shape) for value, aval in zip(inputs, avals, strict=True)]
    consts, moving = inputs[:num_consts], full[num_consts:]
    if not num_moving:  # a loop over nothing but its steps
        raise unsupported("a loop without a sequence")
    body = Graph(graph.program)
    names = [graph.program.new_name("step") for _ in moving]
    here = [
        Value(var.aval.shape, np.dtype(var.aval.dtype), name)
        for var, name in zip(inner.invars[num_consts:], names, strict=True)
    ]
    results = body.run(inner, params["jaxpr"].consts, [*consts, *here])
    outputs = []
    for value, var in zip(results, inner.outvars, strict=True):
        name = body.name_of(body.full(value, var.aval.shape))
        outputs.append(body.add("Identity", [name], var.aval.shape, var.aval.dtype))
    proto = helper.make_graph(
        reachable(body.nodes, {value.name for value in outputs}),
        graph.program.new_name("body"),
        [value_info(value.name, value.shape, value.dtype) for value in here],
        [value_info(value.name, value.shape, value.dtype) for value in outputs],
    )
    direction = int(params["reverse"])
    found = [
        Value(var.aval.shape, np.dtype(var.aval.dtype), graph.program.new_name("scan")) for var in equation.outvars
    ]
    graph.nodes.append(
        helper.make_node(
            "Scan",
            list(map(graph.name_of, moving)),
            [value.name for value in found],
            found[0].name,
            body=proto,
            num_scan_inputs=num_moving,
            scan_input_directions=[direction] * num_moving,
            scan_output_directions=[direction] * (len(found) - num_carry),
        )
    )
    return found


PRIMITIVES: Mapping[str, Rule] = {
    "argmax": _argmax,
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": _concatenate,
    "cond": _cond,
    "conv_general_dilated": _convolution,
    "convert_element_type": _cast,
    "copy": _identity,
    "copy_p": _identity,
    "cumsum": _cumsum,
    "dot_general": _dot_general,
    "expand_dims": _reshape,
    "gather": _gather,
    "integer_pow": _integer_pow,
    "log1p": _log1p,
    "log2": _log2,
    "name": _identity,
    "ne": _not_equal,
    "optimization_barrier": _identity,
    "pad": _pad,
    "platform_index": lambda graph, equation, inputs: [constant_value(0)],
    "reduce_and": _reduce_bool("ReduceMin"),
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "reduce_or": _reduce_bool("ReduceMax"),
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_window_max": _pool("MaxPool"),
    "reduce_window_sum": _pool("AveragePool"),
    "reshape": _reshape,
    "rev": _reverse,
    "round": _round,
    "rsqrt": _rsqrt,
    "scan": _scan,
    "select_n": _select,
    "slice": _slice,
    "split": _split,
    "square": _square,
    "squeeze": _reshape,
    "stack": _stack,
    "stop_gradient": _identity,
    "tile": _tile,
    "top_k": _top_k,
    "transpose": _transpose,
}
