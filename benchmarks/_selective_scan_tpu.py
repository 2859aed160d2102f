"""Compile the selective scan for a TPU v5e and print the compiler's estimates as JSON; run by selective_scan.py.

The compiler does not estimate the cycles of Pallas kernels. They are counted in the schedule that it dumps: the bundles
of each loop body times the number of iterations. Memory stalls are not included.
"""

import json
import math
import os
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from selective_scan import STATES, passes, temporary

from mambaout_jax import distributed
from mambaout_jax.ops.pallas import recurrence_tpu
from mambaout_jax.ops.recurrence import chunk_shape
from mambaout_jax.plan.chips import CHIPS
from mambaout_jax.plan.compiler import tpu_devices
from mambaout_jax.plan.hlo import estimated_operations
from mambaout_jax.plan.kernels import count_bundles

BATCH, LENGTH, CHANNELS = 8, 1024, 384


def main() -> None:
    """Compile both implementations."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        mesh = distributed.make_mesh(devices=tpu_devices("v5e:1x1"))
        forms = {impl: estimate(mesh, impl) for impl in ("associative", "auto")}
        for kernel in ("forward", "backward"):
            forms["auto"]["kernel_cycles"] += kernel_cycles(Path(folder), f"selective_scan_{kernel}")
    forms["auto"]["cycles"] += forms["auto"]["kernel_cycles"]
    print(json.dumps(forms))


def estimate(mesh, impl):
    """Return the cycles of XLA operations and the temporary memory."""
    sharding = NamedSharding(mesh, PartitionSpec())
    rows, columns = (BATCH, LENGTH, CHANNELS), (BATCH, LENGTH, STATES)
    shapes = (rows, rows, (CHANNELS, STATES), columns, columns)
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding) for shape in shapes]
    with jax.set_mesh(mesh):
        program = jax.jit(passes(impl)["gradient"], out_shardings=sharding).lower(*arguments).compile()
    operations = estimated_operations(program.as_text(), CHIPS["v5e"])
    cycles = sum(operation["cycles"] for operation in operations if operation["rule"] == "compiler")
    return {"cycles": cycles, "kernel_cycles": 0, "MiB": temporary(program)}


def kernel_cycles(folder, name):
    """Return the number of bundles that a kernel executes."""
    chunks, steps = chunk_shape(LENGTH)
    grid = recurrence_tpu.kernel_sizes(BATCH, chunks, steps, CHANNELS, 1, STATES).grid
    (code,) = (path for path in folder.glob(f"*{name}*final_bundles.txt") if "analysis" not in path.name)
    return count_bundles(code.read_text(), math.prod(grid))


if __name__ == "__main__":
    main()
