"""Compile for a TPU v5e on a machine without one, and read the compiler's estimates out of the program."""

import importlib.util
import os
import re
import sys

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

CYCLES_PER_SECOND = 1.5e9
# What the compiler asks of a TPU's machine, answered where there is none.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def one_chip() -> Mesh:
    """Give the mesh of one chip to compile for; without the TPU's compiler end the program."""
    if importlib.util.find_spec("libtpu") is None:
        sys.exit("error: the TPU's compiler is not installed; it comes with `pip install libtpu`")
    jax.config.update("jax_platforms", "cpu")
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    return Mesh(np.array(topology.devices[:1]), ("data",), axis_types=(AxisType.Auto,))


def estimated_operations(text):
    """Read the operations with an estimate out of a compiled program, each loop's as often as the loop runs."""
    computations, name = {}, None
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.-]+) .*\{$", line)
        if header:
            name = "ENTRY" if header[1] else header[2]
            computations[name] = []
        elif name and " = " in line:
            computations[name].append(line.strip())

    def trip_count(line):
        """Tell how often an operation runs its body: a loop counts from 0 up to the constant in its condition."""
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
        condition = re.search(r" while\(.* condition=%([\w.-]+)", line)
        if known or not condition:
            return int(known[1]) if known else 1
        bounds = [
            found[1]
            for line in computations[condition[1]]
            if (found := re.search(r" s32\[\].* constant\((\d+)\)", line))
        ]
        if len(bounds) != 1 or not any("direction=LT" in line for line in computations[condition[1]]):
            raise ValueError(f"the loop {condition[1]} does not tell how often it runs")
        return int(bounds[0])

    def walk(name, times):
        for line in computations[name]:
            cycles = re.search(r'"estimated_cycles":"?(\d+)', line)
            if cycles:
                result, _, rest = line.removeprefix("ROOT ").partition(" = ")
                source = re.search(r'op_name="([^"]*)"', line)
                yield {
                    "cycles": times * int(cycles[1]),
                    "operation": result.lstrip("%"),
                    "shape": " ".join(re.findall(r"\w+\[[\d,]*\]", rest.partition("(%")[0])),
                    "source": source[1] if source else "",
                }
            trips = trip_count(line)
            for callee in re.findall(r"(?:body|to_apply|branch_computations|called_computations)=\{?%([\w.-]+)", line):
                if not cycles and callee in computations:
                    yield from walk(callee, times * trips)

    return list(walk("ENTRY", 1))
