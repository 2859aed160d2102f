"""The mesh, shardings, and the transfer of batches from a host to its devices."""

import collections
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from mambaout_jax.distributed.errors import DistributedError
from mambaout_jax.words import count

# Arrays with fewer elements are replicated, because a collective for each would cost more than it saves.
MIN_SHARDED_SIZE = 2**14
PREFETCHED = 2


def make_mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Build a mesh with the axes "data" and "fsdp" in which the devices of a process are contiguous.

    `jax.make_mesh` may interleave processes, and with them the rows of a batch that each host reads.

    Args:
        fsdp: number of devices over which weights are split.
        devices: devices of the mesh; None for all.

    Raises:
        DistributedError: `fsdp` does not divide the number of devices.
    """
    devices = sorted(devices or jax.devices(), key=lambda device: (device.process_index, device.id))
    if len(devices) % fsdp:
        fits = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0]
        raise DistributedError(
            f"config.mesh.fsdp is {fsdp}; expected a divisor of the {count(len(devices), 'device')}: "
            f"{', '.join(map(str, fits))}"
        )
    grid = np.array(devices, dtype=object).reshape(-1, fsdp)
    return Mesh(grid, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding that replicates an array on all devices."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding that splits the first axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def weight_sharding(mesh: Mesh, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
    """Return the sharding that splits the largest axis divisible by "fsdp"; small arrays are replicated."""
    fsdp = mesh.shape["fsdp"]
    axes = [axis for axis, side in enumerate(leaf.shape) if side % fsdp == 0]
    if fsdp == 1 or math.prod(leaf.shape) < MIN_SHARDED_SIZE or not axes:
        return replicated(mesh)
    largest = max(axes, key=lambda axis: leaf.shape[axis])
    return NamedSharding(mesh, PartitionSpec(*[None] * largest, "fsdp"))


def replicate(arrays: Any) -> Any:
    """Constrain arrays to be replicated on every device of the current mesh.

    Otherwise XLA partitions computations with weights along channels, with all-to-alls between layers, and random draws
    for the whole batch along the batch, with a collective for each rejected sample.
    """
    if jax.sharding.get_abstract_mesh().size <= 1:
        return arrays
    return jax.lax.with_sharding_constraint(arrays, PartitionSpec())


def sharded_shapes(function: Callable[..., Any], *args: Any, sharding: Sharding | Mesh) -> Any:
    """Return the shapes, dtypes and shardings of the results of a function, without computing them.

    Args:
        sharding: sharding of all results, or a mesh to split weights over its "fsdp" axis.
    """

    def describe(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        of_leaf = weight_sharding(sharding, leaf) if isinstance(sharding, Mesh) else sharding
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=of_leaf)

    return jax.tree.map(describe, jax.eval_shape(function, *args))


def shardings(described: Any) -> Any:
    """Return the shardings of a tree of shapes from `sharded_shapes`."""
    return jax.tree.map(lambda leaf: leaf.sharding, described)


def put_global(arrays: Any, shardings: Any) -> Any:
    """Transfer host arrays, equal in all processes, to devices by a tree of shardings.

    `jax.device_put` would compare them in a collective, which hangs if a process stops earlier.
    """
    return jax.tree.map(
        lambda array, sharding: jax.make_array_from_callback(array.shape, sharding, lambda index: array[index]),
        arrays,
        shardings,
    )


def batch_shapes(example: Any, batch_size: int, mesh: Mesh) -> Any:
    """Return the shapes, dtypes and shardings of a batch.

    Args:
        example: one row of the batch, a tree of arrays.
    """
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((batch_size, *np.shape(x)), np.asarray(x).dtype, sharding=sharding), example
    )


def local_rows(array: jax.Array) -> np.ndarray:
    """Return the rows of a batch on the devices of this process, in order."""
    rows = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(rows[start]) for start in sorted(rows)])


def prefetch(
    batches: Iterable[dict[str, Any]], sharding: NamedSharding, host_keys: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """Copy batches to the devices ahead of their use, up to `PREFETCHED` at a time.

    Args:
        batches: batches of this host, trees of arrays with the batch as first axis.
        host_keys: entries that stay on the host.
    """
    rows = iter(batches)
    queue: collections.deque[dict[str, Any]] = collections.deque()

    def put(batch: dict[str, Any]) -> dict[str, Any]:
        return {
            key: value
            if key in host_keys
            else jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), value)
            for key, value in batch.items()
        }

    queue.extend(map(put, itertools.islice(rows, PREFETCHED)))
    while queue:
        batch = queue.popleft()
        queue.extend(map(put, itertools.islice(rows, 1)))
        yield batch
