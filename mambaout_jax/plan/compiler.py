"""Compile for TPUs that are not there: libtpu holds their compiler, and runs on any Linux machine."""

import importlib.util
import os
import re

import jax
from jax.experimental import topologies

from mambaout_jax.plan.chips import CHIPS, Chip
from mambaout_jax.run.errors import RunError

# What the compiler asks of a TPU's machine, answered where there is none.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class TooLargeError(Exception):
    """Report a program that the memory of a chip does not hold, in the compiler's words."""


def chip_of(topology: str) -> Chip:
    """Give the chip of a topology, "generation:shape".

    Raises:
        RunError: there is none of that name.
    """
    generation, _, shape = topology.partition(":")
    if generation not in CHIPS:
        raise RunError(
            f"--topology {topology!r} names no TPU that is known here; {', '.join(CHIPS)} and a shape are expected, "
            "such as v5e:4x4"
        )
    if shape not in CHIPS[generation].shapes:
        shapes = CHIPS[generation].shapes
        named = ", ".join(shapes[:12]) + (", ... of cubes of 4, the sides in rising order" if len(shapes) > 12 else "")
        raise RunError(f"--topology {topology!r} is not a shape of {generation}; known ones are {named}")
    return CHIPS[generation]


def tpu_devices(topology: str) -> list[jax.Device]:
    """Give the chips of a topology to compile for; from here on this process computes on CPUs alone, without a cache.

    Raises:
        RunError: there is no such topology, or no libtpu.
    """
    chip = chip_of(topology)
    if importlib.util.find_spec("libtpu") is None:
        raise RunError("the TPU's compiler is not installed; on Linux it comes with `pip install libtpu`")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # what is compiled for absent chips cannot be read back
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    return topologies.get_topology_desc(platform="tpu", topology_name=topology, **chip.options).devices


def compile_for_tpu(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compile.

    Raises:
        TooLargeError: no chip has the memory for it.
    """
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        words = re.search(r"(?:the total memory|Used) .*", str(error).splitlines()[0])
        raise TooLargeError(words[0] if words else str(error).splitlines()[0]) from error


def program_memory(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Tell in bytes of one chip what a compiled program needs: all of it is there at once."""
    plan = compiled.memory_analysis()
    parts = {
        "arguments": plan.argument_size_in_bytes,
        "results": plan.output_size_in_bytes - plan.alias_size_in_bytes,
        "temporaries": plan.temp_size_in_bytes,
        "program": plan.generated_code_size_in_bytes,
    }
    return parts | {"total": sum(parts.values())}
