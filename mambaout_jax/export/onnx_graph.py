"""Translation of JAX functions into ONNX graphs.

A function is traced for an unknown batch size, and the equations of its jaxpr are translated one by one. What depends
on weights alone is computed now. Norms and activations of `ops` become one node, by the names under which jaxprs have
them; loops over a sequence become `Scan`. Where a program has forms for several platforms, the shortest one is taken:
one convolution instead of a sum of shifted maps, a loop instead of a tree of compositions.
"""

import hashlib
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from mambaout_jax.export.errors import ExportError
from mambaout_jax.extras import importing
from mambaout_jax.models.jaxprs import inner_jaxprs

with importing("export", f"{__name__} requires onnx"):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

OPSET = 20  # the first with Gelu
IR_VERSION = 10  # that of opset 20's release; later ones are refused by older runtimes
# A dimension of a traced array: a number, or a multiple of the batch size.
Dim = Any
Shape = tuple[Dim, ...]
_END = np.iinfo(np.int64).max
# Protocol buffers are limited to 2 GiB; a megabyte is more than enough for what is not weights.
_MAX_BYTES = 2**31 - 2**20


class Value(NamedTuple):
    """An array of the program: a tensor of the graph, or a constant.

    Args:
        shape: its shape; where the array of the program repeats one element along an axis, it may have 1 instead.
        name: name of the tensor; empty for a constant.
        data: the constant.
    """

    shape: Shape
    dtype: np.dtype
    name: str = ""
    data: np.ndarray | None = None


Rule = Callable[["_Graph", JaxprEqn, list[Value]], list[Value]]


def to_onnx(
    function: Callable[[Any], Mapping[str, Any]], image: jax.ShapeDtypeStruct, *, input_name: str, description: str
) -> onnx.ModelProto:
    """Translate a function of a batch into an ONNX model whose batch size is free.

    Args:
        function: returns arrays by the names of the outputs; their first axis is the batch.
        image: shape and dtype of one element of the batch.

    Raises:
        ExportError: the function contains an operation that has no translation.
    """
    (batch,) = jax.export.symbolic_shape("b", constraints=["b >= 1"])
    argument = jax.ShapeDtypeStruct((batch, *image.shape), image.dtype)
    jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(argument)
    program = _Program(batch, input_name)
    graph = _Graph(program)
    outputs = graph.run(jaxpr.jaxpr, jaxpr.consts, [Value(argument.shape, np.dtype(image.dtype), input_name)])
    # The results of a jaxpr are in the order of the sorted names.
    for name, value, var in zip(sorted(shapes), outputs, jaxpr.jaxpr.outvars, strict=True):
        graph.nodes.append(
            helper.make_node("Identity", [graph.name_of(graph.full(value, var.aval.shape))], [name], name)
        )
    names = sorted(shapes, key=lambda name: [int(x) if x.isdecimal() else x for x in re.split(r"(\d+)", name)])
    nodes = _reachable(graph.nodes, set(shapes))
    used = set(_all_inputs(nodes))
    proto = helper.make_graph(
        nodes,
        "mambaout_jax",
        [_value_info(input_name, argument.shape, argument.dtype)],
        [_value_info(name, shapes[name].shape, shapes[name].dtype) for name in names],
        [tensor for tensor in program.initializers.values() if tensor.name in used],
        doc_string=description,
    )
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(proto, producer_name="mambaout_jax", opset_imports=opsets, ir_version=IR_VERSION)


def save(proto: onnx.ModelProto, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a model; one that exceeds the limit of protocol buffers has its weights in a second file, PATH.data."""
    helper.set_model_props(proto, metadata)
    large = sum(len(tensor.raw_data) for tensor in proto.graph.initializer) > _MAX_BYTES
    onnx.save_model(proto, path, save_as_external_data=large, location=f"{path.name}.data")


def _unsupported(what: str) -> ExportError:
    return ExportError(f"export onnx does not support {what}, which the model contains; use export stablehlo")


class _Program:
    """What all graphs of a model share: names, constants and the batch size."""

    def __init__(self, batch: Dim, input_name: str):
        self.batch = batch
        self.input_name = input_name
        self.initializers: dict[Any, TensorProto] = {}
        self._numbers = itertools.count()

    def new_name(self, kind: str) -> str:
        """Return a name that no other tensor has."""
        return f"{kind}_{next(self._numbers)}"

    def constant(self, data: np.ndarray) -> str:
        """Return the name of a constant; equal ones are stored once."""
        data = np.asarray(data, order="C")
        key = (data.dtype.str, data.shape, hashlib.sha256(data).digest())
        if key not in self.initializers:
            self.initializers[key] = numpy_helper.from_array(data, self.new_name("constant"))
        return self.initializers[key].name


class _Graph:
    """The nodes of a graph, or of the body of a loop, which may read the tensors of the graphs around it."""

    def __init__(self, program: _Program):
        self.program = program
        self.nodes: list[onnx.NodeProto] = []
        self._batch_size: str | None = None

    def run(self, jaxpr: Jaxpr, consts: Sequence[Any], arguments: Sequence[Value]) -> list[Value]:
        """Translate the equations of a jaxpr, and return its results."""
        values = dict(zip(jaxpr.constvars, map(_constant, consts), strict=True))
        values.update(zip(jaxpr.invars, arguments, strict=True))

        def read(atom: Any) -> Value:
            return _constant(atom.val, atom.aval.dtype) if isinstance(atom, Literal) else values[atom]

        for equation in jaxpr.eqns:
            values.update(
                zip(equation.outvars, self._translate(equation, list(map(read, equation.invars))), strict=True)
            )
        return list(map(read, jaxpr.outvars))

    def _translate(self, equation: JaxprEqn, inputs: list[Value]) -> list[Value]:
        name = equation.primitive.name
        if name in _CALLS:
            inner, consts = _opened(next(filter(_is_jaxpr, equation.params.values())))
            composite = _COMPOSITES.get(inner.debug_info.func_name) if name.startswith("custom_") else None
            return composite(self, equation, inputs) if composite else self.run(inner, consts, inputs)
        if name in _ELEMENTWISE and all(value.data is not None for value in inputs):
            return _fold(equation, _aligned(inputs))
        if name not in _LAZY and all(value.data is not None for value in inputs) and _is_static(equation):
            shapes = (var.aval.shape for var in equation.invars)
            return _fold(
                equation, [np.broadcast_to(value.data, shape) for value, shape in zip(inputs, shapes, strict=True)]
            )
        if name in _ELEMENTWISE:
            return [self.elementwise(_ELEMENTWISE[name], inputs, equation.outvars[0].aval)]
        if name not in _RULES:
            raise _unsupported(f"the operation {name!r}")
        return _RULES[name](self, equation, inputs)

    def add(
        self, op: str, inputs: Iterable[Value | str | np.ndarray], shape: Shape, dtype: Any, **attributes: Any
    ) -> Value:
        """Add a node with one output."""
        name = self.program.new_name(op.lower())
        self.nodes.append(helper.make_node(op, list(map(self.name_of, inputs)), [name], name, **attributes))
        return Value(tuple(shape), np.dtype(dtype), name)

    def name_of(self, value: Value | str | np.ndarray) -> str:
        """Return the name of a tensor or of a constant."""
        if isinstance(value, str):
            return value
        if isinstance(value, np.ndarray):
            return self.program.constant(value)
        return value.name or self.program.constant(value.data)

    def elementwise(self, op: str, inputs: Sequence[Value], aval: Any) -> Value:
        """Add an operation on elements, whose inputs are broadcast."""
        return self.add(op, inputs, _broadcast_shape([value.shape for value in inputs]), aval.dtype)

    def reshape(self, value: Value, shape: Shape) -> Value:
        """Change the shape, of which at most one axis may depend on the batch size at another place than before."""
        if value.shape == shape:
            return value
        if value.data is not None:
            return _constant(value.data.reshape(shape))
        target = [
            dim if isinstance(dim, int) else 0 if axis < len(value.shape) and value.shape[axis] == dim else -1
            for axis, dim in enumerate(shape)
        ]
        if target.count(-1) > 1:
            raise _unsupported(f"a reshape from {value.shape} to {shape}")
        return self.add("Reshape", [value, np.array(target, np.int64)], shape, value.dtype)

    def transpose(self, value: Value, axes: Sequence[int]) -> Value:
        """Permute the axes."""
        if list(axes) == sorted(axes):
            return value
        if value.data is not None:
            return _constant(value.data.transpose(axes))
        return self.add("Transpose", [value], [value.shape[axis] for axis in axes], value.dtype, perm=list(axes))

    def full(self, value: Value, shape: Shape) -> Value:
        """Repeat elements along the axes where the tensor has one and the array has several."""
        if value.shape == tuple(shape):
            return value
        if value.data is not None and all(isinstance(dim, int) for dim in shape):
            return _constant(np.ascontiguousarray(np.broadcast_to(value.data, shape)))
        return self.add("Expand", [value, self._shape_tensor(shape)], shape, value.dtype)

    def _shape_tensor(self, shape: Shape) -> Value | np.ndarray:
        if all(isinstance(dim, int) for dim in shape):
            return np.array(shape, np.int64)
        if self._batch_size is None:
            self._batch_size = self.add("Shape", [self.program.input_name], (1,), np.int64, start=0, end=1).name
        parts = []
        for dim in shape:
            factor = dim if isinstance(dim, int) else dim // self.program.batch
            if not isinstance(factor, int):
                raise _unsupported(f"an array of shape {tuple(shape)}")
            factor_tensor = np.array([factor], np.int64)
            if isinstance(dim, int):
                parts.append(factor_tensor)
            else:
                parts.append(self.add("Mul", [self._batch_size, factor_tensor], (1,), np.int64))
        return self.add("Concat", parts, (len(shape),), np.int64, axis=0)


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, ClosedJaxpr | Jaxpr)


def _opened(jaxpr: Jaxpr | ClosedJaxpr) -> tuple[Jaxpr, Sequence[Any]]:
    """Return a jaxpr of a call, and its constants."""
    return (jaxpr.jaxpr, jaxpr.consts) if isinstance(jaxpr, ClosedJaxpr) else (jaxpr, ())


def _constant(value: Any, dtype: Any = None) -> Value:
    data = np.asarray(value, dtype)
    return Value(data.shape, data.dtype, data=data)


def _is_static(equation: JaxprEqn) -> bool:
    variables = (*equation.invars, *equation.outvars)
    return all(isinstance(dim, int) for var in variables for dim in var.aval.shape)


def _aligned(inputs: Sequence[Value]) -> list[np.ndarray]:
    """Broadcast constants to one shape, which primitives of JAX require."""
    return list(np.broadcast_arrays(*(value.data for value in inputs)))


def _fold(equation: JaxprEqn, inputs: Sequence[np.ndarray]) -> list[Value]:
    """Compute an equation now."""
    results = equation.primitive.bind(*map(jax.numpy.asarray, inputs), **equation.params)
    return list(map(_constant, results if equation.primitive.multiple_results else [results]))


def _broadcast_shape(shapes: Sequence[Shape]) -> Shape:
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    return tuple(
        next((dim for dim in dims if not isinstance(dim, int) or dim != 1), 1) for dims in zip(*padded, strict=True)
    )


def _value_info(name: str, shape: Shape, dtype: Any) -> onnx.ValueInfoProto:
    dims = [dim if isinstance(dim, int) else "batch" for dim in shape]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), dims)


def _all_inputs(nodes: Iterable[onnx.NodeProto]) -> Iterable[str]:
    """Yield the tensors that nodes read, in their bodies too."""
    for node in nodes:
        yield from node.input
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _all_inputs(attribute.g.node)


def _reachable(nodes: Sequence[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """Return the nodes that the outputs depend on, in order."""
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(_all_inputs([node]))
    return kept[::-1]


# Primitives that run the jaxpr in their parameters once.
_CALLS = ("jit", "closed_call", "custom_jvp_call", "custom_vjp_call", "remat2", "checkpoint")
# Primitives that are not computed now even if their inputs are constants.
_LAZY = ("broadcast_in_dim", "cond", "dim_as_value", "platform_index")
_ELEMENTWISE = {
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
    return [graph.elementwise("Log", [graph.elementwise("Add", [inputs[0], _constant(1, aval.dtype)], aval)], aval)]


def _not_equal(graph, equation, inputs):
    aval = equation.outvars[0].aval
    return [graph.elementwise("Not", [graph.elementwise("Equal", inputs, aval)], aval)]


def _integer_pow(graph, equation, inputs):
    aval = equation.outvars[0].aval
    exponent = _constant(equation.params["y"], aval.dtype)
    return [graph.elementwise("Pow", [inputs[0], exponent], aval)]


def _select(graph, equation, inputs):
    which, *cases = inputs
    if len(cases) != 2 or which.dtype != bool:
        raise _unsupported("a selection from several arrays")
    return [graph.elementwise("Where", [which, cases[1], cases[0]], equation.outvars[0].aval)]


def _cast(graph, equation, inputs):
    [value], dtype = inputs, equation.outvars[0].aval.dtype
    if value.dtype == dtype:
        return inputs
    return [graph.add("Cast", inputs, value.shape, dtype, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))]


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
        raise _unsupported("padding between elements")
    value = graph.full(value, equation.invars[0].aval.shape)
    out = equation.outvars[0].aval
    if min(*low, *high) >= 0:
        return [graph.add("Pad", [value, np.array([*low, *high], np.int64), fill], out.shape, out.dtype)]
    raise _unsupported("negative padding")


def _gather(graph, equation, inputs):
    """Translate the selection of a constant range of several axes, or of elements along one axis."""
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
    raise _unsupported("a gather of several ranges")


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
    return [graph.add("Cast", [found], out.shape, out.dtype, to=helper.np_dtype_to_tensor_dtype(np.dtype(out.dtype)))]


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
        raise _unsupported("a transposed convolution")
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
            raise _unsupported("windows over other axes than rows and columns")
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
        raise _unsupported("a condition that depends on the images")
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
        raise _unsupported("a loop without a sequence")
    body = _Graph(graph.program)
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
        _reachable(body.nodes, {value.name for value in outputs}),
        graph.program.new_name("body"),
        [_value_info(value.name, value.shape, value.dtype) for value in here],
        [_value_info(value.name, value.shape, value.dtype) for value in outputs],
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


_RULES: Mapping[str, Rule] = {
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
    "name": _identity,
    "ne": _not_equal,
    "optimization_barrier": _identity,
    "pad": _pad,
    "platform_index": lambda graph, equation, inputs: [_constant(0)],
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_window_max": _pool("MaxPool"),
    "reduce_window_sum": _pool("AveragePool"),
    "reshape": _reshape,
    "rev": _reverse,
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
    "transpose": _transpose,
}


def _layer_norm(graph, equation, inputs):
    x = graph.full(inputs[0], equation.invars[0].aval.shape)
    eps = _literal_added(_opened(equation.params["call_jaxpr"])[0])
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
_COMPOSITES: Mapping[str, Rule] = {"_by_platform": _recurrence, "_layer_norm": _layer_norm, "gelu": _gelu}
