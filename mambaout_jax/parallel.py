"""Where arrays live: the mesh, the shardings, and the way of a host's batch to the devices."""

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding


def make_mesh() -> Mesh:
    """Lay all devices along one axis, "data"."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Place the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Split the first axis over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def abstract(function: Callable[..., Any], *args: Any, sharding: Sharding) -> Any:
    """Describe what a function returns, without computing it: shapes and dtypes, placed by `sharding`."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), jax.eval_shape(function, *args)
    )


def prefetch(batches: Iterable[dict[str, Any]], sharding: NamedSharding, depth: int = 2) -> Iterator[dict[str, Any]]:
    """Copy batches to the devices ahead of their use, `depth` of them at a time.

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
