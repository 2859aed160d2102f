"""Estimate MambaOut-Tiny's training step on a TPU v5e with the TPU compiler, on a machine without a TPU.

    pip install libtpu
    python benchmarks/model_tpu.py [--json PATH]

The step is that of this package: AdamW, bfloat16, drop path 0.2, label smoothing 0.1, batch 64 on one chip, without
mixup and random erasing. The claim: fewer estimated cycles than the plain form of the block, which splits the result of
one matrix product and concatenates the input of the other. If it is missed, this is printed and the exit code is 1.

The figures are the compiler's estimates, not measurements. The body of a loop counts once per iteration. Operations of
10^9 cycles in the plain form are gradients of depthwise convolutions into which the compiler has fused the split, so
that their windows have one pixel.
"""

import argparse
import sys
import time
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
from _timing import check, finish, machine, print_operations, write_json

from mambaout_jax import distributed
from mambaout_jax.models.layers.drop import drop_path
from mambaout_jax.models.layers.parameters import per_channel
from mambaout_jax.models.mambaout.model import GatedCNNBlock
from mambaout_jax.ops import depthwise_conv2d
from mambaout_jax.plan.chips import CHIPS
from mambaout_jax.plan.compiler import tpu_devices
from mambaout_jax.plan.hlo import estimated_operations
from mambaout_jax.run.config_file import read_config
from mambaout_jax.run.errors import RunError
from mambaout_jax.train.program import training_program

CONFIG = f"{Path(__file__).parents[1]}/configs/imagenet.py:mambaout_tiny"
CHANGES = {
    "model.dtype": "bfloat16",
    "microbatch_size": None,
    "augment.mixup_prob": 0.0,
    "augment.random_erasing_prob": 0.0,
    "optim.clip_grad_norm": None,
    "optim.ema_decay": None,
}
TOP = 10
CHIP = CHIPS["v5e"]


def main() -> None:
    """Compile both forms and print one table per form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="images on the chip (default: 64)")
    parser.add_argument("--form", choices=("library", "plain"), help="compile only this form (default: both)")
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args()
    try:
        mesh = distributed.make_mesh(devices=tpu_devices("v5e:1x1"))
    except RunError as error:
        sys.exit(f"error: {error}")

    print(*(f"{name}: {value}" for name, value in machine().items()), sep="\n")
    forms = {}
    for form in ("plain", "library") if args.form is None else (args.form,):
        if form == "plain":
            with mock.patch.object(GatedCNNBlock, "__call__", plain_block):
                forms[form] = estimate(mesh, args.batch)
        else:
            forms[form] = estimate(mesh, args.batch)
        report(form, forms[form])
    missed: list[str] = []
    if len(forms) == 2:
        ratio = forms["plain"]["cycles"] / forms["library"]["cycles"]
        print(f"\nplain / library: {ratio:.2f}")
        check(missed, f"the plain form takes {ratio:.2f} times the cycles; more than 1 is claimed", ratio > 1)
    write_json(args.json, {"compiled_for": "TPU v5e, one chip", "batch": args.batch, "forms": forms})
    finish(missed)


def plain_block(self, x, key=None, drop_path_rate=0.0):
    """Compute the Gated CNN block as written in its equation: one product, split, concatenate, one product."""
    hidden, channels = self.fc2.weight.shape[0], self.conv.weight.shape[3]
    y = self.fc1(self.norm(x))
    gate, identity, value = jnp.split(y, [hidden, 2 * hidden - channels], axis=-1)
    value = depthwise_conv2d(value, self.conv.weight.astype(value.dtype), impl="lax")
    value = value + per_channel(self.conv.bias, value)
    mixed = jnp.concatenate([identity, value], axis=-1)
    y = self.fc2(jax.nn.gelu(gate, approximate=False) * mixed)
    return x + drop_path(y, drop_path_rate, key)


def estimate(mesh, batch):
    """Compile the step, and return cycles, images per second, memory, seconds and the most expensive operations."""
    start = time.perf_counter()
    compiled = compile_step(mesh, batch)
    seconds = time.perf_counter() - start
    operations = sorted(estimated_operations(compiled.as_text(), CHIP), key=lambda op: -op["cycles"])
    cycles = sum(operation["cycles"] for operation in operations)
    return {
        "cycles": cycles,
        "images_per_second": batch * CHIP.clock / cycles,
        "temp_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "compile_seconds": seconds,
        "top": operations[:TOP],
    }


def compile_step(mesh, batch):
    """Compile the training step from shapes alone."""
    config = read_config(CONFIG).replace({**CHANGES, "batch_size": batch})
    task = config.build_task()
    model = task.build_model({"num_classes": 1000})
    program = training_program(config, task, model, task.train_transform(model).empty(), num_images=batch, mesh=mesh)
    with jax.set_mesh(mesh):
        return program.lower().compile()


def report(form, result):
    """Print the figures of one form."""
    print(
        f"\n{form}: {result['cycles'] / 1e6:.1f} million cycles, "
        f"{result['images_per_second']:.0f} images/s at {CHIP.clock / 1e9:g} GHz, "
        f"{result['temp_bytes'] / 2**30:.2f} GiB temporary, compiled in {result['compile_seconds']:.0f} s"
    )
    print_operations(result["top"])
    sys.stdout.flush()


if __name__ == "__main__":
    main()
