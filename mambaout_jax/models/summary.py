"""A model's outputs with their shapes, parameters and multiply-adds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn, Literal

from mambaout_jax.models.api import Model
from mambaout_jax.models.macs import count_equations, fast_to_trace


class Row(NamedTuple):
    """One output of a model for one image.

    Args:
        output: name of the output.
        shape: shape without the batch.
        params: number of parameters that it depends on and that no row above does.
        macs: multiply-adds in addition to those of the row above.
    """

    output: str
    shape: tuple[int, ...]
    params: int
    macs: int


@dataclass(frozen=True)
class Summary:
    """A table of a model's outputs, as `str`, and its numbers, as `rows`."""

    title: str
    rows: tuple[Row, ...]
    params: int
    macs: int

    def __str__(self) -> str:
        lines = [("output", "shape", "parameters", "MACs")]
        lines += [
            (name, "x".join(map(str, shape)), f"{params:,}", f"{macs:,}") for name, shape, params, macs in self.rows
        ]
        lines.append(("total", "", f"{self.params:,}", f"{self.macs:,}"))
        first, *widths = (max(map(len, column)) for column in zip(*lines, strict=True))
        cells = [[line[0].ljust(first), *map(str.rjust, line[1:], widths)] for line in lines]
        return "\n".join([self.title, "", *map("  ".join, cells)])

    __repr__ = __str__


def summarize(model: Model) -> Summary:
    """Count parameters and multiply-adds by output, for one image of the model's input size."""
    traced = fast_to_trace(model)
    image = jax.ShapeDtypeStruct((1, *model.input_spec.size, model.in_chans), jnp.float32)
    kinds = ["embedding"] if hasattr(model.family.module, "embed") else []
    kinds += ["logits"] if model.num_classes else []

    def outputs(variables: Any, image: jax.Array) -> list[jax.Array]:
        return [*traced.features(variables, image), *(traced.apply(variables, image, kind) for kind in kinds)]

    closed, shapes = jax.make_jaxpr(outputs, return_shape=True)(traced.shapes, image)
    names, shapes = _name_leaves(shapes, kinds)
    params = set(jax.tree.leaves(_by_leaf(traced.shapes, closed.jaxpr.invars)["params"]))
    rows, total = [], 0
    for name, shape, value in zip(names, shapes, closed.jaxpr.outvars, strict=True):
        equations, needed = _dependencies(closed.jaxpr.eqns, value)
        new, macs = params & needed, count_equations(equations)
        rows.append(Row(name, shape.shape[1:], sum(var.aval.size for var in new), macs - total))
        params, total = params - new, macs
    return Summary(repr(model)[1:-1], tuple(rows), model.num_params, total)


def _name_leaves(outputs: Sequence[Any], kinds: Sequence[str]) -> tuple[list[str], list[jax.ShapeDtypeStruct]]:
    """Return names and shapes of the arrays in the outputs: the feature maps, then an array or a tree for each kind."""
    names = [f"features[{index}]" for index in range(len(outputs) - len(kinds))] + list(kinds)
    found = [
        (name + jax.tree_util.keystr(path), leaf)
        for name, output in zip(names, outputs, strict=True)
        for path, leaf in jax.tree_util.tree_leaves_with_path(output)
    ]
    return [name for name, _ in found], [leaf for _, leaf in found]


def _by_leaf(tree: Any, leaves: Sequence[Any]) -> Any:
    return jax.tree.unflatten(jax.tree.structure(tree), leaves[: len(jax.tree.leaves(tree))])


def _dependencies(equations: Sequence[JaxprEqn], output: Any) -> tuple[list[JaxprEqn], set[Any]]:
    """Return the equations and the variables that an output depends on."""
    needed, found = {output}, []
    for equation in reversed(equations):
        if needed.intersection(equation.outvars):
            found.append(equation)
            needed.update(var for var in equation.invars if not isinstance(var, Literal))
    return found, needed
