"""Compilation for TPUs without a TPU: libtpu contains the compiler and runs on any Linux machine."""

import importlib.util
import os
import re

import jax
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache

from mambaout_jax.plan.chips import CHIPS, Chip
from mambaout_jax.run.errors import RunError

# Variables that replace the metadata of a TPU machine.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class TooLargeError(Exception):
    """A program that does not fit into the memory of a chip, with the compiler's message."""


def chip_of(topology: str) -> Chip:
    """Return the chip of a topology, "generation:shape".

    Raises:
        RunError: the topology is unknown.
    """
    generation, _, shape = topology.partition(":")
    if generation not in CHIPS:
        raise RunError(
            f"--topology {topology!r} is not a known TPU; expected {', '.join(CHIPS)} with a shape, such as v5e:4x4"
        )
    if shape not in CHIPS[generation].shapes:
        shapes = CHIPS[generation].shapes
        named = ", ".join(shapes[:12]) + (", ... (multiples of 4, in ascending order)" if len(shapes) > 12 else "")
        raise RunError(f"--topology {topology!r} is not a shape of {generation}; known shapes are {named}")
    return CHIPS[generation]


def tpu_devices(topology: str) -> list[jax.Device]:
    """Return the devices of a topology to compile for.

    As a side effect, this process uses only the CPU, without a compilation cache.

    Raises:
        RunError: the topology is unknown, or libtpu is not installed.
    """
    chip = chip_of(topology)
    if importlib.util.find_spec("libtpu") is None:
        raise RunError("the TPU compiler is not installed; on Linux, run `pip install libtpu`")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # programs for absent chips cannot be read from the cache
    compilation_cache.reset_cache()  # which otherwise stays in use in a process that has used it before
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    return topologies.get_topology_desc(platform="tpu", topology_name=topology, **chip.options).devices


def compile_for_tpu(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compile a program.

    Raises:
        TooLargeError: it does not fit into the memory of a chip.
    """
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        found = re.search(r"(?:the total memory|Used) .*", str(error).splitlines()[0])
        raise TooLargeError(found[0] if found else str(error).splitlines()[0]) from error


def program_memory(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Return the memory of a compiled program in bytes per chip, by kind; all kinds are allocated at the same time."""
    memory = compiled.memory_analysis()
    sizes = {
        "arguments": memory.argument_size_in_bytes,
        "results": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "program": memory.generated_code_size_in_bytes,
    }
    return sizes | {"total": sum(sizes.values())}
