"""Many devices and many processes: where arrays live, and what the processes tell each other."""

from mambaout_jax.distributed.errors import LostProcessError, ParallelError
from mambaout_jax.distributed.hosts import (
    Ticks,
    exchange,
    has_joined,
    is_first,
    leave,
    leave_after_others,
    leave_alone,
    require_same,
    see_same_folder,
    start,
)
from mambaout_jax.distributed.mesh import (
    abstract,
    batch_sharding,
    gather,
    make_mesh,
    place,
    prefetch,
    replicated,
    shardings,
)

__all__ = [
    "LostProcessError",
    "ParallelError",
    "Ticks",
    "abstract",
    "batch_sharding",
    "exchange",
    "gather",
    "has_joined",
    "is_first",
    "leave",
    "leave_after_others",
    "leave_alone",
    "make_mesh",
    "place",
    "prefetch",
    "replicated",
    "require_same",
    "see_same_folder",
    "shardings",
    "start",
]
