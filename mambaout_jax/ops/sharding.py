"""Functions of arrays on meshes with axes of any type.

With Auto axes, XLA chooses all shardings. With Explicit axes, the type of an array contains its sharding, and a program
states the sharding of a result that is not obvious. Under `jax.shard_map`, the type contains the axes over which an
array varies.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def spec_of(x: Any) -> PartitionSpec:
    """Return how the type of an array splits its axes; all entries are None without Explicit axes."""
    return jax.typeof(x).sharding.spec


def with_auto_axes(function: Callable[..., Any], *arguments: Any, out: Any) -> Any:
    """Compute `function(*arguments)` without Explicit axes, and with arguments that vary over the same axes.

    Explicit axes are Auto inside; under `shard_map`, all arrays are cast to vary over the union of their axes. JAX
    transposes both conversions: a gradient has the sharding of its argument, and that of a weight is summed over the
    devices.

    Args:
        arguments: pytrees; only their JAX arrays are converted.
        out: specs of the results, a pytree prefix; a mesh axis in a spec is ignored where it was used before.
    """
    leaves, structure = jax.tree.flatten(arguments)
    arrays = vary_alike({index: leaf for index, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)})
    meshes = (jax.typeof(array).sharding.mesh for array in arrays.values())
    mesh = next((mesh for mesh in meshes if mesh.explicit_axes), None)

    def run(arrays):
        return function(*structure.unflatten([arrays.get(index, leaf) for index, leaf in enumerate(leaves)]))

    if mesh is None:
        return run(arrays)
    shardings = jax.tree.map(
        lambda spec: NamedSharding(mesh, _each_axis_once(spec)), out, is_leaf=lambda x: isinstance(x, PartitionSpec)
    )
    return jax.sharding.auto_axes(run, axes=mesh.explicit_axes, out_sharding=shardings)(arrays)


def vary_alike(arrays: Any) -> Any:
    """Convert a pytree of arrays under `shard_map` so that each varies over the axes of all of them."""
    varying = jax.tree.map(lambda x: jax.typeof(x).manual_axis_type.varying, arrays)
    of_any = frozenset().union(*jax.tree.leaves(varying))
    return jax.tree.map(lambda x, own: lax.pcast(x, tuple(sorted(of_any - own)), to="varying"), arrays, varying)


def split_over_all_axes(x: jax.Array) -> jax.Array:
    """Split the first axis over all Auto axes of a mesh with several, or over none if they do not divide it.

    The mesh is that of `jax.set_mesh`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    pairs = zip(mesh.axis_names, mesh.axis_types, strict=True)
    axes = tuple(name for name, kind in pairs if kind == AxisType.Auto and mesh.shape[name] > 1)
    if len(axes) < 2:
        return x
    divides = len(x) % math.prod(mesh.shape[name] for name in axes) == 0
    return lax.with_sharding_constraint(x, PartitionSpec(axes if divides else None))


def map_rows(function: Callable[..., Any], *rows: Any, replicated: tuple[Any, ...] = ()) -> Any:
    """Compute `function(*rows, *replicated)` of arrays with one entry per row of a batch, on each device for its rows.

    For kernels, which XLA cannot partition, and for functions whose loops end when all rows are done: without it, all
    devices would wait for each other in every iteration.

    Args:
        rows: pytrees of arrays whose first axis is that of the batch, as it is of all results.
        replicated: further arguments, which have no gradient.
    """
    auto, split = _row_axes(jax.tree.leaves(rows)[0].shape[0])
    if not auto:
        return function(*rows, *replicated)
    specs = (PartitionSpec(split or None),) * len(rows) + (PartitionSpec(),) * len(replicated)
    # Nothing is summed over devices, so that there is nothing to check.
    mapped = jax.shard_map(function, in_specs=specs, out_specs=specs[0], axis_names=set(auto), check_vma=False)
    return mapped(*rows, *replicated)


def rows_per_device(x: jax.Array) -> int:
    """Return how many rows of an array a device has in `map_rows`, or on a mesh with Explicit axes."""
    mesh = jax.sharding.get_abstract_mesh()
    explicit = spec_of(x)[0] or ()
    axes = (explicit,) if isinstance(explicit, str) else explicit
    return x.shape[0] // math.prod(mesh.shape[name] for name in (*_row_axes(x.shape[0])[1], *axes))


def _row_axes(count):
    """Return the Auto axes of the mesh, and as many of the first ones as divide a number of rows."""
    mesh = jax.sharding.get_abstract_mesh()
    pairs = zip(mesh.axis_names, mesh.axis_types, strict=True)
    auto = split = tuple(name for name, kind in pairs if kind == AxisType.Auto)
    while count % math.prod(mesh.shape[name] for name in split):
        split = split[:-1]
    return auto, split


def _each_axis_once(spec):
    used, entries = set(), []
    for entry in spec:
        names = [name for name in (entry if isinstance(entry, tuple) else (entry,)) if name and name not in used]
        used.update(names)
        entries.append(tuple(names) or None)
    return PartitionSpec(*entries)
