"""Devices and processes: meshes, shardings, and communication between processes outside of XLA."""

from mambaout_jax.extras import check_installed

check_installed("train", __name__)

from mambaout_jax.distributed.errors import DistributedError, LostProcessError
from mambaout_jax.distributed.hosts import (
    StopCoordinator,
    allgather_objects,
    allgather_strings,
    assert_same_on_all_hosts,
    barrier,
    check_shared_filesystem,
    initialize,
    is_first,
    is_multi_process,
    shutdown,
    shutdown_after_local_failure,
    shutdown_after_remote_failure,
)
from mambaout_jax.distributed.mesh import (
    batch_shapes,
    batch_sharding,
    local_rows,
    make_mesh,
    prefetch,
    put_global,
    replicate,
    replicated,
    sharded_shapes,
    shardings,
)

__all__ = [
    "DistributedError",
    "LostProcessError",
    "StopCoordinator",
    "allgather_objects",
    "allgather_strings",
    "assert_same_on_all_hosts",
    "barrier",
    "batch_shapes",
    "batch_sharding",
    "check_shared_filesystem",
    "initialize",
    "is_first",
    "is_multi_process",
    "local_rows",
    "make_mesh",
    "prefetch",
    "put_global",
    "replicate",
    "replicated",
    "sharded_shapes",
    "shardings",
    "shutdown",
    "shutdown_after_local_failure",
    "shutdown_after_remote_failure",
]
