"""The mesh, shardings, and the transfer of batches from a host to its devices."""

import collections
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from mambaout_jax.distributed.errors import ParallelError

# Number of elements below which an array is replicated, as a collective of its own would cost more than it saves.
MIN_SHARDED_SIZE = 2**14


def make_mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Build a mesh with the axes "data" and "fsdp" in which the devices of a process are contiguous.

    `jax.make_mesh` may interleave processes, and with them the rows of a batch that a host has to read.

    Args:
        fsdp: number of devices over which weights are split.
        devices: default: all.

    Raises:
        ParallelError: `fsdp` does not divide the number of devices.
    """
    devices = sorted(devices or jax.devices(), key=lambda device: (device.process_index, device.id))
    if len(devices) % fsdp:
        fits = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0]
        raise ParallelError(
            f"config.mesh.fsdp is {fsdp}; a divisor of the {len(devices)} devices is expected: "
            f"{', '.join(map(str, fits))}"
        )
    grid = np.array(devices, dtype=object).reshape(-1, fsdp)
    return Mesh(grid, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding that replicates an array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding that splits the first axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def weight_sharding(mesh: Mesh, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
    """Return the sharding that splits the largest axis that "fsdp" divides; small arrays are replicated."""
    fsdp = mesh.shape["fsdp"]
    axes = [axis for axis, side in enumerate(leaf.shape) if side % fsdp == 0]
    if fsdp == 1 or math.prod(leaf.shape) < MIN_SHARDED_SIZE or not axes:
        return replicated(mesh)
    largest = max(axes, key=lambda axis: leaf.shape[axis])
    return NamedSharding(mesh, PartitionSpec(*[None] * largest, "fsdp"))


def replicate(arrays: Any) -> Any:
    """Constrain arrays to be replicated on every device of the current mesh.

    Without this XLA would split computations with weights along channels, with all-to-alls between layers, and random
    draws for the whole batch along the draws, with a collective for each rejected one.
    """
    if jax.sharding.get_abstract_mesh().size <= 1:
        return arrays
    return jax.lax.with_sharding_constraint(arrays, PartitionSpec())


def sharded_shapes(function: Callable[..., Any], *args: Any, placed: Sharding | Mesh) -> Any:
    """Return the shapes, dtypes and shardings of a function's results without computing them.

    Args:
        placed: the sharding of all results, or a mesh for weights, which are split over its "fsdp" axis.
    """

    def describe(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding = weight_sharding(placed, leaf) if isinstance(placed, Mesh) else placed
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(describe, jax.eval_shape(function, *args))


def shardings(described: Any) -> Any:
    """Return the shardings of a tree of shapes from `sharded_shapes`."""
    return jax.tree.map(lambda leaf: leaf.sharding, described)


def put_global(arrays: Any, shardings: Any) -> Any:
    """Place host arrays, which are equal in all processes, by a tree of shardings.

    `jax.device_put` would compare them in a collective, in which a process that stops earlier does not take part.
    """
    return jax.tree.map(
        lambda array, sharding: jax.make_array_from_callback(array.shape, sharding, lambda index: array[index]),
        arrays,
        shardings,
    )


def prefetch(batches: Iterable[dict[str, Any]], sharding: NamedSharding, depth: int = 2) -> Iterator[dict[str, Any]]:
    """Copy batches to the devices ahead of their use, up to `depth` at a time.

    Args:
        batches: this host's rows; arrays whose first axis is the batch.
    """
    rows = iter(batches)
    queue: collections.deque[dict[str, Any]] = collections.deque()

    def fill(count: int) -> None:
        for batch in itertools.islice(rows, count):
            queue.append({key: jax.make_array_from_process_local_data(sharding, x) for key, x in batch.items()})

    fill(depth)
    while queue:
        batch = queue.popleft()
        fill(1)
        yield batch
