"""Graphs of ONNX nodes that are built from the equations of jaxprs."""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from mambaout_jax.export.errors import ExportError
from mambaout_jax.extras import importing

with importing("export", f"{__name__} requires onnx"):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

# A dimension of a traced array: a number, or a multiple of the batch size.
Dim = Any
Shape = tuple[Dim, ...]
# Primitives that run the jaxpr in their parameters once.
_CALLS = ("jit", "closed_call", "custom_jvp_call", "custom_vjp_call", "remat2", "checkpoint")
# Primitives that are not constant-folded, even if their inputs are constants.
_LAZY = ("broadcast_in_dim", "cond", "dim_as_value", "platform_index")


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


Rule = Callable[["Graph", JaxprEqn, list[Value]], list[Value]]


class Rules(NamedTuple):
    """How equations are translated.

    Args:
        elementwise: ONNX operators of elementwise primitives, by the name of the primitive.
        primitives: rules of other primitives, by name.
        functions: rules of functions with a custom derivative, by name.
        jitted: rules of functions under `jax.jit`, by name.
    """

    elementwise: Mapping[str, str]
    primitives: Mapping[str, Rule]
    functions: Mapping[str, Rule]
    jitted: Mapping[str, Rule]


def unsupported(what: str) -> ExportError:
    """Return the error about what has no translation."""
    return ExportError(f"export onnx does not support {what}, which the model contains; use export stablehlo")


class Program:
    """What all graphs of a model share: names, constants, the batch size and the rules."""

    def __init__(self, batch: Dim, input_name: str, rules: Rules):
        self.batch = batch
        self.input_name = input_name
        self.rules = rules
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


class Graph:
    """The nodes of a graph, or of the body of a loop, which may read the tensors of the graphs around it."""

    def __init__(self, program: Program):
        self.program = program
        self.nodes: list[onnx.NodeProto] = []
        self._batch_size: str | None = None

    def run(self, jaxpr: Jaxpr, consts: Sequence[Any], arguments: Sequence[Value]) -> list[Value]:
        """Translate the equations of a jaxpr, and return its results."""
        values = dict(zip(jaxpr.constvars, map(constant_value, consts), strict=True))
        values.update(zip(jaxpr.invars, arguments, strict=True))

        def read(atom: Any) -> Value:
            return constant_value(atom.val, atom.aval.dtype) if isinstance(atom, Literal) else values[atom]

        for equation in jaxpr.eqns:
            values.update(
                zip(equation.outvars, self._translate(equation, list(map(read, equation.invars))), strict=True)
            )
        return list(map(read, jaxpr.outvars))

    def _translate(self, equation: JaxprEqn, inputs: list[Value]) -> list[Value]:
        name, rules = equation.primitive.name, self.program.rules
        if name in _CALLS:
            inner, consts = opened(next(filter(_is_jaxpr, equation.params.values())))
            known = rules.functions if name.startswith("custom_") else rules.jitted
            function = known.get(inner.debug_info.func_name)
            return function(self, equation, inputs) if function else self.run(inner, consts, inputs)
        if name in rules.elementwise and all(value.data is not None for value in inputs):
            return _fold(equation, _aligned(inputs))
        if name not in _LAZY and all(value.data is not None for value in inputs) and _is_static(equation):
            shapes = (var.aval.shape for var in equation.invars)
            return _fold(
                equation, [np.broadcast_to(value.data, shape) for value, shape in zip(inputs, shapes, strict=True)]
            )
        if name in rules.elementwise:
            return [self.elementwise(rules.elementwise[name], inputs, equation.outvars[0].aval)]
        if name not in rules.primitives:
            raise unsupported(f"the operation {name!r}")
        return rules.primitives[name](self, equation, inputs)

    def add(
        self, op: str, inputs: Iterable[Value | str | np.ndarray], shape: Shape, dtype: Any, **attributes: Any
    ) -> Value:
        """Add a node with one output."""
        return self.add_several(op, inputs, [(shape, dtype)], **attributes)[0]

    def add_several(
        self,
        op: str,
        inputs: Iterable[Value | str | np.ndarray],
        outputs: Sequence[tuple[Shape, Any]],
        **attributes: Any,
    ) -> list[Value]:
        """Add a node with several outputs of given shapes and dtypes."""
        values = [Value(tuple(shape), np.dtype(dtype), self.program.new_name(op.lower())) for shape, dtype in outputs]
        names = [value.name for value in values]
        self.nodes.append(helper.make_node(op, list(map(self.name_of, inputs)), names, names[0], **attributes))
        return values

    def cast(self, value: Value, dtype: Any) -> Value:
        """Convert to another dtype."""
        if value.dtype == dtype:
            return value
        return self.add("Cast", [value], value.shape, dtype, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def top_k(self, value: Value, k: int) -> tuple[Value, Value]:
        """Return the largest elements along the last axis, the first ones of equals, and their int64 indices."""
        shape = (*value.shape[:-1], k)
        largest, index = self.add_several("TopK", [value, np.array([k])], [(shape, value.dtype), (shape, np.int64)])
        return largest, index

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
            return constant_value(value.data.reshape(shape))
        target = [
            dim if isinstance(dim, int) else 0 if axis < len(value.shape) and value.shape[axis] == dim else -1
            for axis, dim in enumerate(shape)
        ]
        if target.count(-1) > 1:
            raise unsupported(f"a reshape from {value.shape} to {shape}")
        return self.add("Reshape", [value, np.array(target, np.int64)], shape, value.dtype)

    def transpose(self, value: Value, axes: Sequence[int]) -> Value:
        """Permute the axes."""
        if list(axes) == sorted(axes):
            return value
        if value.data is not None:
            return constant_value(value.data.transpose(axes))
        return self.add("Transpose", [value], [value.shape[axis] for axis in axes], value.dtype, perm=list(axes))

    def full(self, value: Value, shape: Shape) -> Value:
        """Repeat elements along the axes where the tensor has one and the array has several."""
        if value.shape == tuple(shape):
            return value
        if value.data is not None and all(isinstance(dim, int) for dim in shape):
            return constant_value(np.ascontiguousarray(np.broadcast_to(value.data, shape)))
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
                raise unsupported(f"an array of shape {tuple(shape)}")
            factor_tensor = np.array([factor], np.int64)
            if isinstance(dim, int):
                parts.append(factor_tensor)
            else:
                parts.append(self.add("Mul", [self._batch_size, factor_tensor], (1,), np.int64))
        return self.add("Concat", parts, (len(shape),), np.int64, axis=0)


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, ClosedJaxpr | Jaxpr)


def opened(jaxpr: Jaxpr | ClosedJaxpr) -> tuple[Jaxpr, Sequence[Any]]:
    """Return a jaxpr of a call, and its constants."""
    return (jaxpr.jaxpr, jaxpr.consts) if isinstance(jaxpr, ClosedJaxpr) else (jaxpr, ())


def constant_value(value: Any, dtype: Any = None) -> Value:
    """Return a constant, of its own dtype or another."""
    data = np.asarray(value, dtype)
    return Value(data.shape, data.dtype, data=data)


def _is_static(equation: JaxprEqn) -> bool:
    variables = (*equation.invars, *equation.outvars)
    return all(isinstance(dim, int) for var in variables for dim in var.aval.shape)


def _aligned(inputs: Sequence[Value]) -> list[np.ndarray]:
    """Broadcast constants to one shape, which primitives of JAX require."""
    return list(np.broadcast_arrays(*(value.data for value in inputs)))


def _fold(equation: JaxprEqn, inputs: Sequence[np.ndarray]) -> list[Value]:
    """Evaluate an equation on constants at export time (constant folding)."""
    results = equation.primitive.bind(*map(jax.numpy.asarray, inputs), **equation.params)
    return list(map(constant_value, results if equation.primitive.multiple_results else [results]))


def _broadcast_shape(shapes: Sequence[Shape]) -> Shape:
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    return tuple(
        next((dim for dim in dims if not isinstance(dim, int) or dim != 1), 1) for dims in zip(*padded, strict=True)
    )


def value_info(name: str, shape: Shape, dtype: Any) -> onnx.ValueInfoProto:
    """Describe an input or an output of a graph."""
    dims = [dim if isinstance(dim, int) else "batch" for dim in shape]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), dims)


def all_inputs(nodes: Iterable[onnx.NodeProto]) -> Iterable[str]:
    """Yield the tensors that nodes read, in their bodies too."""
    for node in nodes:
        yield from node.input
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from all_inputs(attribute.g.node)


def reachable(nodes: Sequence[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """Return the nodes that the outputs depend on, in order."""
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(all_inputs([node]))
    return kept[::-1]
