"""Translation of JAX functions into ONNX models.

A function is traced for an unknown batch size, and the equations of its jaxpr are translated one by one. What depends
on weights alone is constant-folded. Norms and activations of `ops` become one node, by the names under which jaxprs
have them; loops over a sequence become `Scan`. Where a program has forms for several platforms, the shortest one is
taken: one convolution instead of a sum of shifted maps, a loop instead of a tree of compositions.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mambaout_jax.export.onnx_functions import FUNCTIONS, JITTED
from mambaout_jax.export.onnx_graph import Graph, Program, Rules, Value, all_inputs, reachable, value_info
from mambaout_jax.export.onnx_rules import ELEMENTWISE, PRIMITIVES
from mambaout_jax.extras import importing

with importing("export", f"{__name__} requires onnx"):
    import onnx
    from onnx import helper

OPSET = 20  # the first with Gelu
IR_VERSION = 10  # that of opset 20's release; later ones are refused by older runtimes
# Protocol buffers are limited to 2 GiB; a megabyte is more than enough for what is not weights.
_MAX_BYTES = 2**31 - 2**20


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
    program = Program(batch, input_name, Rules(ELEMENTWISE, PRIMITIVES, FUNCTIONS, JITTED))
    graph = Graph(program)
    outputs = graph.run(jaxpr.jaxpr, jaxpr.consts, [Value(argument.shape, np.dtype(image.dtype), input_name)])
    # The results of a jaxpr are in the order of the sorted names.
    for name, value, var in zip(sorted(shapes), outputs, jaxpr.jaxpr.outvars, strict=True):
        graph.nodes.append(
            helper.make_node("Identity", [graph.name_of(graph.full(value, var.aval.shape))], [name], name)
        )
    names = sorted(shapes, key=lambda name: [int(x) if x.isdecimal() else x for x in re.split(r"(\d+)", name)])
    nodes = reachable(graph.nodes, set(shapes))
    used = set(all_inputs(nodes))
    proto = helper.make_graph(
        nodes,
        "mambaout_jax",
        [value_info(input_name, argument.shape, argument.dtype)],
        [value_info(name, shapes[name].shape, shapes[name].dtype) for name in names],
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
