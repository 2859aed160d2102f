"""Estimate the training step and the forward pass of MambaOut on a TPU, with the TPU compiler and without a TPU.

    pip install libtpu
    python benchmarks/model_tpu.py [--form FORM] [--model NAME] [--chip CHIP] [--json PATH]

The step is that of this package: AdamW, bfloat16, drop path, label smoothing 0.1, batch 64 on one chip, without mixup
and random erasing. The forms are `plain`, which splits the result of one matrix product and concatenates the input of
the other; `xla`, without kernels; and `kernels` (docs/kernels.md). The claim: each form takes fewer cycles than the one
before it. If it is missed, this is printed and the exit code is 1.

The figures are the compiler's estimates, not measurements. The body of a loop counts once per iteration. Cycles of
kernels are the larger of their schedule and their transfers, printed separately. In the plain form, operations of about
10^9 cycles are gradients of depthwise convolutions: the compiler fuses the split into them and computes them one pixel
at a time.
"""

import argparse
import itertools
import sys
import time
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
from _timing import check, finish, machine, print_operations, write_json

from mambaout_jax import distributed
from mambaout_jax.models.layers.drop import drop_path
from mambaout_jax.models.mambaout.model import GatedCNNBlock
from mambaout_jax.ops import depthwise_conv2d
from mambaout_jax.ops.channels import per_channel
from mambaout_jax.plan.chips import CHIPS
from mambaout_jax.plan.compiler import tpu_devices
from mambaout_jax.plan.hlo import estimated_operations
from mambaout_jax.plan.kernels import kernel_cycles
from mambaout_jax.plan.program import Dataset, planned_program
from mambaout_jax.run.config_file import read_config
from mambaout_jax.run.errors import RunError

CONFIG = f"{Path(__file__).parents[1]}/configs/imagenet.py"
FORMS = ("plain", "xla", "kernels")
CHANGES = {
    "model.dtype": "bfloat16",
    "microbatch_size": None,
    "augment.mixup_prob": 0.0,
    "augment.random_erasing_prob": 0.0,
    "optim.clip_grad_norm": None,
    "optim.ema_decay": None,
}
TOP = 10


def main() -> None:
    """Compile the forms and print one table per form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="images on the chip (default: 64)")
    parser.add_argument("--form", choices=FORMS, action="append", help="compile only this form; may be repeated")
    parser.add_argument(
        "--model",
        default="mambaout_tiny",
        help="model name; --form plain supports only models without SSM and LayerScale (default: mambaout_tiny)",
    )
    parser.add_argument("--chip", choices=("v5e", "v6e"), default="v5e")
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args()
    try:
        tpu_devices(f"{args.chip}:1x1")
    except RunError as error:
        sys.exit(f"error: {error}")

    print(*(f"{name}: {value}" for name, value in machine().items()), sep="\n")
    print(f"\n{args.model}, {args.batch} images on one {args.chip}")
    forms = {}
    for form in args.form or FORMS:
        with mock.patch.object(GatedCNNBlock, "__call__", plain_block if form == "plain" else GatedCNNBlock.__call__):
            forms[form] = estimate(form, args)
        report(form, forms[form], args)
    missed: list[str] = []
    for slow, fast in itertools.pairwise(form for form in FORMS if form in forms):
        ratio = forms[slow]["step"]["cycles"] / forms[fast]["step"]["cycles"]
        print(f"\n{slow} / {fast}: {ratio:.2f}")
        check(missed, f"{slow} takes {ratio:.2f} times the cycles of {fast}; more than 1 is claimed", ratio > 1)
    write_json(args.json, {"model": args.model, "chip": args.chip, "batch": args.batch, "forms": forms})
    finish(missed)


def plain_block(self, x, key=None, drop_path_rate=0.0):
    """Compute the Gated CNN block as written in its equation: one product, split, concatenate, one product."""
    hidden, channels = self.fc2.weight.shape[0], self.conv.weight.shape[3]
    y = self.fc1(self.norm(x))
    gate, identity, value = jnp.split(y, [hidden, 2 * hidden - channels], axis=-1)
    value = depthwise_conv2d(value, self.conv.weight.astype(value.dtype), impl="lax")
    value = value + per_channel(self.conv.bias[...], value)
    mixed = jnp.concatenate([identity, value], axis=-1)
    y = self.fc2(jax.nn.gelu(gate, approximate=False) * mixed)
    return x + drop_path(y, drop_path_rate, key)


def estimate(form, args):
    """Compile the step and the forward pass; return figures of both by name."""
    topology = f"{args.chip}:1x1"
    changes = {**CHANGES, "batch_size": args.batch, "model.kernels": "auto" if form == "kernels" else "xla"}
    config = read_config(f"{CONFIG}:{args.model}").replace(changes)
    dataset = Dataset(args.batch, {"num_classes": 1000})
    mesh = distributed.make_mesh(devices=tpu_devices(topology))
    model, program = planned_program(config, config.build_task(), dataset, mesh)
    images = jax.ShapeDtypeStruct((args.batch, *model.input_spec.size, model.in_chans), jnp.bfloat16)
    forward = jax.jit(model.apply, in_shardings=distributed.replicated(mesh))
    schedules = kernel_cycles(config, topology, dataset) if form == "kernels" else {}
    return {
        "step": figures(program.lower, mesh, args.chip, schedules),
        "forward": figures(lambda: forward.lower(model.shapes, images), mesh, args.chip, schedules),
    }


def figures(lower, mesh, chip, schedules):
    """Compile a program; return cycles, those of kernels, memory, seconds and the most expensive operations."""
    start = time.perf_counter()
    with jax.set_mesh(mesh):
        compiled = lower().compile()
    operations = sorted(estimated_operations(compiled.as_text(), CHIPS[chip], schedules), key=lambda op: -op["cycles"])
    return {
        "cycles": sum(operation["cycles"] for operation in operations),
        "kernel_cycles": sum(operation["cycles"] for operation in operations if operation["rule"] != "compiler"),
        "temp_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "compile_seconds": time.perf_counter() - start,
        "top": operations[:TOP],
    }


def report(form, result, args):
    """Print the figures of one form."""
    clock = CHIPS[args.chip].clock
    for name, found in result.items():
        print(
            f"\n{form}, {name}: {found['cycles'] / 1e6:.1f} million cycles, "
            f"{found['kernel_cycles'] / 1e6:.1f} of them in kernels, "
            f"{args.batch * clock / found['cycles']:.0f} images/s at {clock / 1e9:g} GHz, "
            f"{found['temp_bytes'] / 2**30:.2f} GiB temporary, compiled in {found['compile_seconds']:.0f} s"
        )
        print_operations(found["top"])
    sys.stdout.flush()


if __name__ == "__main__":
    main()
