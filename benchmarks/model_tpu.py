"""Estimate MambaOut-Tiny's train step on a TPU v5e, by the TPU's own compiler, on a machine without a TPU.

    pip install libtpu
    python benchmarks/model_tpu.py [--json PATH]

The step is the library's: AdamW, bfloat16, drop path 0.2, label smoothing 0.1, batch 64 on one chip; of what may
happen to the images on the device there is only the normalisation of their bytes. The claim: fewer estimated cycles
than the plain form of the block, whose parts are split from one product and concatenated for the other.

The figures are the compiler's estimates, not measurements. A loop's body counts as often as it runs. Where the plain
form shows operations of a thousand million cycles, the compiler has fused the split into the gradient of a depthwise
convolution and left itself only windows of one pixel.
"""

import argparse
import sys
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from _timing import machine, write_json

import mambaout_jax as mo
from mambaout_jax import distributed
from mambaout_jax.models.layers.drop import drop_path
from mambaout_jax.models.layers.parameters import per_channel
from mambaout_jax.models.mambaout.model import GatedCNNBlock
from mambaout_jax.ops import depthwise_conv2d
from mambaout_jax.plan.chips import CHIPS
from mambaout_jax.plan.compiler import tpu_devices
from mambaout_jax.plan.hlo import estimated_operations
from mambaout_jax.run.errors import RunError
from mambaout_jax.run.state import init_state, init_step_metrics
from mambaout_jax.tasks.classification.mixing import Augmentation
from mambaout_jax.train.optimizer import adamw
from mambaout_jax.train.step import make_train_step

TOP = 10
CHIP = CHIPS["v5e"]


def main() -> None:
    """Compile both forms and print a table for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="images on the chip (default: 64)")
    parser.add_argument("--form", choices=("library", "plain"), help="compile this form only (default: both)")
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
    if len(forms) == 2:
        print(f"\nplain / library: {forms['plain']['cycles'] / forms['library']['cycles']:.2f}")
    write_json(args.json, {"compiled_for": "TPU v5e, one chip", "batch": args.batch, "forms": forms})


def plain_block(self, x, key=None, drop_path_rate=0.0):
    """Compute the Gated CNN block as its equation is written: one product, split, concatenate, one product."""
    hidden, channels = self.fc2.weight.shape[0], self.conv.weight.shape[3]
    y = self.fc1(self.norm(x))
    gate, identity, value = jnp.split(y, [hidden, 2 * hidden - channels], axis=-1)
    value = depthwise_conv2d(value, self.conv.weight.astype(value.dtype), impl="lax")
    value = value + per_channel(self.conv.bias, value)
    mixed = jnp.concatenate([identity, value], axis=-1)
    y = self.fc2(jax.nn.gelu(gate, approximate=False) * mixed)
    return x + drop_path(y, drop_path_rate, key)


def estimate(mesh, batch):
    """Compile the step for the mesh; give cycles, images a second, memory, time and the most expensive operations."""
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
    """Compile the train step from shapes alone."""
    replicated, sharding = distributed.replicated(mesh), distributed.batch_sharding(mesh)
    model = mo.create_model("mambaout_tiny", dtype="bfloat16", drop_path_rate=0.2)

    def schedule(step):
        return jnp.full_like(step, 1e-3, jnp.float32)

    optimizer = adamw(
        schedule, weight_decay=0.05, b1=0.9, b2=0.999, eps=1e-8, clip_grad_norm=None, no_decay=model.no_decay
    )
    step = make_train_step(
        model, optimizer, schedule, Augmentation(label_smoothing=0.1), accumulation_steps=1, ema_decay=None
    )
    state = distributed.sharded_shapes(
        lambda key: init_state(model, optimizer, key, ema=False), jax.random.key(0), placed=mesh
    )
    progress = distributed.sharded_shapes(init_step_metrics, placed=replicated)
    key = distributed.sharded_shapes(lambda: jax.random.key(0), placed=replicated)
    images = {
        "image": jax.ShapeDtypeStruct((batch, *model.input_spec.size, 3), np.uint8, sharding=sharding),
        "label": jax.ShapeDtypeStruct((batch,), np.int32, sharding=sharding),
    }
    with jax.set_mesh(mesh):
        jitted = jax.jit(step, donate_argnums=0, out_shardings=replicated)
        return jitted.lower(state, progress, images, key).compile()


def report(form, result):
    """Print the figures of one form."""
    print(
        f"\n{form}: {result['cycles'] / 1e6:.1f} million cycles, "
        f"{result['images_per_second']:.0f} images/s at 1.5 GHz, "
        f"{result['temp_bytes'] / 2**30:.2f} GiB temporary, compiled in {result['compile_seconds']:.0f} s"
    )
    print(f"{'Mcycles':>9}  {'operation':<32} {'result':<40} source")
    for row in result["top"]:
        print(f"{row['cycles'] / 1e6:9.2f}  {row['operation']:<32.32} {row['shape']:<40.40} {row['source'][-70:]}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
