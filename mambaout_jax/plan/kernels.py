"""Cycles of Pallas kernels from the schedules of their code, because compiled programs have no estimates for them.

The compiler dumps schedules only if the environment requests it before libtpu is loaded, and then for everything that
it compiles, so a separate process compiles only the kernels.
"""

import json
import math
import os
import pickle
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.extend.core import Jaxpr, JaxprEqn

from mambaout_jax import distributed
from mambaout_jax.models.jaxprs import inner_jaxprs
from mambaout_jax.plan.compiler import compile_for_tpu, tpu_devices
from mambaout_jax.plan.program import Dataset, planned_program
from mambaout_jax.plugins import load as load_plugins
from mambaout_jax.run.config import RunConfig

# A line of scheduled code, the test for the end of a loop, and the branch back to its start.
_BUNDLE = re.compile(r"^\s*(?:0x[0-9a-f]+|0)\s+(\w\w)?\s*:\s*[>\s]*(\{.*)$", re.MULTILINE)
_LOOP_TEST = re.compile(r"(%\w+) = scmp\.ge\.\S+ (?:\(\S+\), )?%\w+, (\d+) /\* loop exit test")
_BRANCH = re.compile(r"sbr\.rel \(!(%\w+)\)")
_DELAY_SLOTS = 4

# A kernel's name and the shapes of its results, in the syntax of a compiled program.
Kernel = tuple[str, str]


def kernel_calls(jaxpr: Jaxpr) -> dict[Kernel, JaxprEqn]:
    """Return the kernels of a traced function with one call of each."""
    calls = {}
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call" and not equation.params["interpret"]:
            results = (variable.aval.str_short(short_dtypes=True) for variable in equation.outvars)
            # Without the axes of a mesh over which a result varies, which follow in braces.
            shapes = " ".join(result.partition("{")[0] for result in results)
            calls[equation.params["name"], shapes] = equation
        for inner in inner_jaxprs(equation.params):
            calls |= kernel_calls(inner)
    return calls


def kernel_cycles(config: RunConfig, topology: str, dataset: Dataset) -> dict[Kernel, int]:
    """Count the scheduled cycles of each kernel in a config's training step, without waits for memory."""
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        ran = subprocess.run(
            [sys.executable, "-m", "mambaout_jax.plan.kernels", folder],
            input=pickle.dumps((config, topology, dataset)),
            env=os.environ | {"LIBTPU_INIT_ARGS": flags, "JAX_PLATFORMS": "cpu"},
            capture_output=True,  # the compiler's messages matter only if it fails
            check=False,
        )
    if ran.returncode:
        raise RuntimeError(f"the kernels could not be compiled: {ran.stderr.decode(errors='replace')[-2000:]}")
    return {(name, shapes): cycles for name, shapes, cycles in json.loads(ran.stdout.splitlines()[-1])}


def main() -> None:
    """Compile the kernels one by one and print their scheduled cycles; the subprocess of `kernel_cycles`."""
    folder, (config, topology, dataset) = Path(sys.argv[1]), pickle.load(sys.stdin.buffer)
    mesh = distributed.make_mesh(config.fsdp, tpu_devices(topology))
    load_plugins(config.plugins)
    _, program = planned_program(config, config.build_task(), dataset, mesh)
    with jax.set_mesh(mesh):
        metrics, key = jax.eval_shape(program.init_metrics), jax.eval_shape(lambda: jax.random.key(0))
        arguments = program.state, metrics, program.batch, key, program.teacher
        calls = kernel_calls(jax.make_jaxpr(program.step)(*arguments).jaxpr)
    whole = distributed.replicated(distributed.make_mesh(devices=list(mesh.devices.flat[:1])))
    rows = []
    for (name, shapes), call in calls.items():
        arguments = [jax.ShapeDtypeStruct(x.aval.shape, x.aval.dtype, sharding=whole) for x in call.invars]
        compile_for_tpu(jax.jit(_bind(call)).lower(*arguments))
        (code,) = (path for path in folder.glob("*-lone_kernel*-final_bundles.txt") if "analysis" not in path.name)
        programs = math.prod(call.params["grid_mapping"].grid)
        rows.append((name, shapes, count_bundles(code.read_text(), programs)))
        for path in folder.iterdir():
            path.unlink()
    print(json.dumps(rows))


def _bind(call: JaxprEqn) -> Callable[..., Any]:
    def lone_kernel(*args: jax.Array) -> Any:
        return call.primitive.bind(*args, **call.params)

    return lone_kernel  # the name appears in the compiler's file names


def count_bundles(code: str, programs: int) -> int:
    """Count the bundles that a kernel issues, one per cycle.

    A loop begins with a bundle marked `LB`, and ends with a branch, under a predicate from a comparison with its trip
    count, and its delay slots. The outermost loop is over the grid: with two cores each runs half of it, and with one
    it has further iterations, which only transfer data.

    Args:
        code: the scheduled code.
        programs: number of programs in the grid.

    Raises:
        ValueError: the compiler writes loops in another way.
    """
    trips = {predicate: int(count) for predicate, count in _LOOP_TEST.findall(code)}
    loops = [0]  # bundles of the code outside of loops, and of the open loops
    ending: list[int] = []  # trip count and remaining delay slots of the innermost loop after its branch

    def end_loop(count):
        bundles = loops.pop()
        loops[-1] += bundles * (min(programs, count) if len(loops) == 1 else count)

    for mark, bundle in _BUNDLE.findall(code):
        if mark == "LB":
            loops.append(0)
        loops[-1] += 1
        if ending:
            ending[1] -= 1
        branch = _BRANCH.search(bundle)
        branches = branch is not None and branch[1] in trips
        if ending and (branches or not ending[1]):
            end_loop(ending[0])
            ending = []
        if branches:
            ending = [trips[branch[1]], _DELAY_SLOTS]
    if ending:
        end_loop(ending[0])
    if len(loops) > 1:
        raise ValueError("the end of a loop was not found in the code of a kernel")
    return loops[0]


if __name__ == "__main__":
    main()
