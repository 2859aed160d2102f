"""Estimate the training step of Mask R-CNN on TPU v5e by parts, with the TPU compiler, on a machine without a TPU.

    pip install libtpu
    python benchmarks/detection_tpu.py [--json PATH]

The step is that of `configs/coco.py:mambaout_tiny` in bfloat16 on 8 chips, two images of 800x1344 on each. Compiling it
takes about 14 minutes of a core. The figures are the compiler's estimates, not measurements; loops of non-maximum
suppression count at their largest number of iterations.
"""

import argparse
import collections
import re
import sys
from pathlib import Path

import jax
from _timing import write_json

from mambaout_jax import distributed
from mambaout_jax.plan.chips import CHIPS
from mambaout_jax.plan.compiler import compile_for_tpu, tpu_devices
from mambaout_jax.plan.hlo import estimated_operations
from mambaout_jax.plan.program import Dataset, planned_program
from mambaout_jax.run.config_file import read_config
from mambaout_jax.run.errors import RunError

CONFIG = f"{Path(__file__).parents[1]}/configs/coco.py:mambaout_tiny"
TOPOLOGY = "v5e:2x4"
# Parts by the names of the sources of operations; the first that matches counts.
PARTS = {
    "non-maximum suppression, at its largest number of iterations": r"_suppress",
    "assignment of anchors and proposals": r"closed_call",
    "RoIAlign with its gradient, sampling, and crops of masks": r"shard_map",
    "depthwise convolutions": r"branch_\d+_fun.*conv_general",
    "other convolutions": r"conv_general",
    "matrix products": r"dot_general",
    "norms, activations, copies, optimizer and everything else": r"",
}


def main() -> None:
    """Compile the step and print a row for each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args()
    config = read_config(CONFIG, ["--config.model.dtype=bfloat16"])
    try:
        mesh = distributed.make_mesh(config.fsdp, tpu_devices(TOPOLOGY))
    except RunError as error:
        sys.exit(f"error: {error}")
    task = config.build_task()
    _, program = planned_program(config, task, Dataset(*task.known_size("train")), mesh)
    with jax.set_mesh(mesh):
        text = compile_for_tpu(program.lower()).as_text()
    cycles = cycles_by_part(text)
    for part, number in cycles.most_common():
        print(f"{number / 1e6:8.1f} million cycles  {part}")
    print(f"{cycles.total() / 1e6:8.1f} million cycles  the step")
    write_json(args.json, {"topology": TOPOLOGY, "cycles": cycles})


def cycles_by_part(text: str) -> collections.Counter[str]:
    """Sum the compiler's cycles of the operations of each part of a compiled program."""
    cycles = collections.Counter()
    for operation in estimated_operations(text, CHIPS[TOPOLOGY.partition(":")[0]]):
        part = next(name for name, pattern in PARTS.items() if re.search(pattern, operation["source"]))
        cycles[part] += operation["cycles"]
    return cycles


if __name__ == "__main__":
    main()
