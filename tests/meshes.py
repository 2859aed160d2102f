"""Layouts of arrays on meshes of four devices, under which a program has the results and types of one device."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

ROOT = Path(__file__).parent.parent
COLLECTIVE = re.compile(r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")


class Layout(NamedTuple):
    """Rows are split over "data", and the longest axis of each weight over "model"."""

    axes: dict[str, int]
    kind: AxisType  # Manual: under `shard_map`

    @property
    def types(self):
        return (self.kind if self.kind != AxisType.Manual else AxisType.Explicit,) * len(self.axes)

    @property
    def abstract_mesh(self):
        return AbstractMesh(tuple(self.axes.values()), tuple(self.axes), axis_types=self.types)

    @property
    def is_data_parallel(self):
        return list(self.axes) == ["data"]

    def weight_spec(self, leaf):
        longest = max(range(leaf.ndim), key=lambda axis: leaf.shape[axis], default=None)
        if "model" not in self.axes or longest is None or leaf.shape[longest] % self.axes["model"]:
            return PartitionSpec()
        return PartitionSpec(*[None] * longest, "model")

    def program(self, function, mesh):
        """Return a program (weights, rows) -> (results, gradients of a loss), to be jitted."""
        run = value_and_gradients(function)
        if self.kind != AxisType.Manual:
            return run
        whole, rows = PartitionSpec(), PartitionSpec("data")
        return jax.shard_map(run, mesh=mesh, in_specs=(whole, rows), out_specs=(rows, (whole, rows)))

    def shardings(self, weights, rows, mesh):
        of_rows = NamedSharding(mesh, PartitionSpec("data"))
        return (
            jax.tree.map(lambda leaf: NamedSharding(mesh, self.weight_spec(leaf)), weights),
            jax.tree.map(lambda _: of_rows, rows),
        )


LAYOUTS = {
    "explicit": Layout({"data": 4}, AxisType.Explicit),
    "explicit_model": Layout({"data": 2, "model": 2}, AxisType.Explicit),
    "auto": Layout({"data": 4}, AxisType.Auto),
    "auto_model": Layout({"data": 2, "model": 2}, AxisType.Auto),
    "shard_map": Layout({"data": 4}, AxisType.Manual),
}
TYPED = [name for name, layout in LAYOUTS.items() if layout.kind != AxisType.Auto]


def value_and_gradients(function):
    """Return the program whose loss is a sum over rows, on each device alone under `shard_map`."""

    def run(weights, rows):
        def loss(weights, rows):
            results = function(weights, rows)
            return sum(jnp.sin(leaf.astype(jnp.float32)).sum() for leaf in jax.tree.leaves(results)), results

        (_, results), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(weights, rows)
        return results, gradients

    return run


def trace(layout, function, weights, rows):
    """Trace the program without devices; return it, its arguments and their number of results."""
    layout = LAYOUTS[layout]
    mesh = layout.abstract_mesh
    arguments = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        (weights, rows),
        layout.shardings(weights, rows, mesh),
    )
    with jax.sharding.use_abstract_mesh(mesh):
        jaxpr, (results, _) = jax.make_jaxpr(layout.program(function, mesh), return_shape=True)(*arguments)
    return jaxpr, jax.tree.leaves(arguments), len(jax.tree.leaves(results))


def check_types(layout, function, weights, rows):
    """Check that gradients have the types of their arguments, and that results are split like rows."""
    jaxpr, arguments, count = trace(layout, function, weights, rows)
    for result in jaxpr.out_avals[:count]:
        assert result.sharding.spec[0] == "data", result
    for gradient, argument in zip(jaxpr.out_avals[count:], arguments, strict=True):
        assert gradient.shape == argument.shape
        assert tuple(gradient.sharding.spec) == (*argument.sharding.spec, *[None] * argument.ndim)[: argument.ndim]


def compare(layout, function, weights, rows):
    """Compare four devices with one; return the largest difference and the number of collectives by name."""
    expected = jax.device_get(jax.jit(value_and_gradients(function))(weights, rows))
    layout = LAYOUTS[layout]
    mesh = jax.make_mesh(tuple(layout.axes.values()), tuple(layout.axes), axis_types=layout.types)
    arguments = jax.device_put((weights, rows), layout.shardings(weights, rows, mesh))
    with jax.set_mesh(mesh):
        compiled = jax.jit(layout.program(function, mesh)).lower(*arguments).compile()
        actual = jax.device_get(compiled(*arguments))
    found = COLLECTIVE.findall(compiled.as_text())
    return {
        "difference": largest_difference(actual, expected),
        "collectives": {name: found.count(name) for name in sorted(set(found))},
    }


def reordering_difference(function, weights, rows):
    """Return how much the results of one device change with the order of the rows, which is rounding."""
    program = jax.jit(value_and_gradients(function))
    order = np.arange(len(jax.tree.leaves(rows)[0]))[::-1]

    def reordered(tree):
        return jax.tree.map(lambda x: x[order], tree)

    results, (of_weights, of_rows) = jax.device_get(program(weights, reordered(rows)))
    return largest_difference(
        (reordered(results), (of_weights, reordered(of_rows))), jax.device_get(program(weights, rows))
    )


def compare_pmap(function, weights, rows):
    """Compare `jax.pmap` over four devices with one; return the largest difference."""
    expected = jax.device_get(jax.jit(value_and_gradients(function))(weights, rows))

    def run(weights, rows):
        results, (of_weights, of_rows) = value_and_gradients(function)(weights, rows)
        return results, (jax.lax.psum(of_weights, "data"), of_rows)

    def split(tree):
        return jax.tree.map(lambda x: x.reshape(4, -1, *x.shape[1:]), tree)

    mapped = jax.pmap(run, axis_name="data", in_axes=(None, 0), out_axes=(0, (None, 0)))
    results, (of_weights, of_rows) = jax.device_get(mapped(weights, split(rows)))
    joined = jax.tree.map(lambda x: x.reshape(math.prod(x.shape[:2]), *x.shape[2:]), (results, of_rows))
    return largest_difference((joined[0], (of_weights, joined[1])), expected)


def largest_difference(ours, theirs):
    """Compare each leaf relative to its largest value.

    Leaves that are zero but for rounding, such as gradients of a bias before batch normalization, are compared relative
    to a thousandth of the largest value of all.
    """
    least = max(1e-3 * max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(theirs)), 1e-30)
    differences = jax.tree.map(lambda a, b: np.abs(a - b).max() / max(np.abs(b).max(), least), ours, theirs)
    return float(max(jax.tree.leaves(differences)))


def on_four_devices(module, call):
    """Evaluate a function of a test module in a process with four devices, and return its result, through JSON."""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "PYTHONPATH": str(ROOT)}
    program = (
        "import json, jax\n"
        "jax.config.update('jax_disable_most_optimizations', True)\n"
        f"from {module} import *\n"
        f"print(json.dumps({call}))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
