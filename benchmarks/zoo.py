"""Compare one model of each family near 25 M parameters: time and memory on CPU, their scans, estimates for a TPU.

    python benchmarks/zoo.py [--only cpu|scan|tpu] [--models NAME...] [--rounds N] [--json PATH]

Claims, checked on a CPU in float32:
* No forward pass of 8 images of 224 px takes more than 2 GB of memory (peak of the process, weights included).
* The largest scan of each family at 224 and 512 px is at least 3 times as fast with `auto` as with an associative scan
  over the whole sequence, forward and with gradients.
Missed claims are printed, and the exit code is then 1.

`cpu` runs each pass in its own process and prints its peak memory. Rounds alternate with those of the first model; the
last column is the ratio of the times.
`tpu` (requires libtpu) compiles the training step in bfloat16 for 64 images of 224 px on one v5e chip, and prints the
compiler's estimates, not measurements.
"""

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import time
from functools import partial
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _timing import check, finish, machine, median_ratio, time_interleaved, write_json
from selective_scan import passes

import mambaout_jax as mo
from mambaout_jax.models import cpu_compiler_options
from mambaout_jax.models.jaxprs import inner_jaxprs
from mambaout_jax.ops.selective_scan import run_scan
from mambaout_jax.plan.plan import plan
from mambaout_jax.plan.program import dataset_of
from mambaout_jax.run.config import default_config, parse_config

# MambaOut and DeiT, with which the papers compare, come first.
MODELS = (
    "mambaout_tiny", "deit_small_patch16_224", "mamba_tiny", "vim_small", "localvim_small", "vmamba_tiny_s1l8",
    "localvmamba_tiny", "plainmamba_l2", "mambavision_t",
)  # fmt: skip
PASSES = ("forward", "training step")
BATCH, SIZE, SIZES = 8, 224, (224, 512)
GIGABYTE = 1e9
TOPOLOGY, TPU_BATCH = "v5e:1x1", 64


def main() -> None:
    """Print one table per part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", choices=tuple(PARTS))
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="PATH")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)  # in the process of one model and pass
    args = parser.parse_args()
    if args.measure:
        measure(*args.measure)
        return
    print(*(f"{name}: {value}" for name, value in machine().items()), sep="\n")
    results, missed = {}, []
    for part in (args.only,) if args.only else PARTS:
        print(flush=True)
        results[part] = PARTS[part](args, missed)
    write_json(args.json, results)
    finish(missed)


def build_pass(name, kind):
    """Return a call that runs the forward pass or the training step (forward, backward, AdamW) once."""
    model = mo.create_model(name)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(BATCH, SIZE, SIZE, 3)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, model.num_classes, BATCH))
    variables = model.init(jax.random.key(0))
    if kind == "forward":
        apply = jax.jit(model.apply, compiler_options=cpu_compiler_options())
        return lambda: apply(variables, images)
    optimizer = optax.adamw(1e-3, weight_decay=0.05)

    def step(variables, state, images, labels):
        def loss(params):
            logits, batch_stats = model.apply_train({**variables, "params": params}, images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), batch_stats

        gradients, batch_stats = jax.grad(loss, has_aux=True)(variables["params"])
        updates, state = optimizer.update(gradients, state, variables["params"])
        return {"params": optax.apply_updates(variables["params"], updates), "batch_stats": batch_stats}, state

    step = jax.jit(step, donate_argnums=(0, 1))
    carried = [(variables, optimizer.init(variables["params"]))]

    def train():
        carried.append(step(*carried.pop(), images, labels))
        return carried[-1]

    return train


def measure(name, kind):
    """Time one pass for each line on stdin and print the seconds; at end of file, print the peak memory."""
    start = time.perf_counter()
    call = build_pass(name, kind)
    jax.block_until_ready(call())
    print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)
    for _ in sys.stdin:
        jax.block_until_ready(call())  # as in a loop
        start = time.perf_counter()
        jax.block_until_ready(call())
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)
    print(json.dumps({"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}), flush=True)


def measure_cpu(args, missed):
    """Time the passes of all models, alternating with the first one, and print the peak memory of their processes."""
    print(f"{BATCH} images of {SIZE} px, float32, median of {args.rounds} rounds")
    columns = f"{'model':<24}{'parameters':>12}{'pass':>16}{'ms':>9}{'images/s':>10}{'memory':>9}"
    print(f"{columns}{'first call':>12}{'ratio':>7}")
    rows, (first, *_) = [], args.models
    for kind in PASSES:
        reference = _start(first, kind)
        _answer(reference)
        for name in args.models:
            process = _start(name, kind)
            first_call = _answer(process)["seconds"]
            pairs = [(_time(process), _time(reference)) for _ in range(args.rounds)]
            seconds, of_reference = zip(*pairs, strict=True)
            memory, middle = _end(process), median(seconds)
            params = mo.create_model(name).num_params
            print(
                f"{name:<24}{params / 1e6:>10.1f} M{kind:>16}{1e3 * middle:9.0f}{BATCH / middle:10.2f}"
                f"{memory / GIGABYTE:6.2f} GB{first_call:10.0f} s{median_ratio(seconds, of_reference):7.2f}",
                flush=True,
            )
            rows.append({"model": name, "pass": kind, "rounds": pairs, "bytes": memory, "first": first_call})
            if kind == "forward":
                what = f"the forward pass of {name} takes {memory / GIGABYTE:.2f} GB; at most 2 are claimed"
                check(missed, what, memory <= 2 * GIGABYTE)
        _end(reference)
    return rows


def _start(name, kind):
    command = [sys.executable, __file__, "--measure", name, kind]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _time(process) -> float:
    """Return the seconds of one more pass of a process."""
    process.stdin.write("\n")
    process.stdin.flush()
    return _answer(process)["seconds"]


def _end(process) -> int:
    """End a process, and return its peak memory in bytes."""
    process.stdin.close()
    memory = _answer(process)["bytes"]
    process.wait()
    return memory


def _answer(process) -> dict[str, Any]:
    line = process.stdout.readline()
    if not line:
        sys.exit(f"error: {' '.join(process.args)} ended with {process.wait()}")
    return json.loads(line)


def scans_of(name, size):
    """Return the shapes of the selective scans of a model, and how many of each a forward pass computes."""
    model = mo.create_model(name)
    if "img_size" in model.options:
        model = mo.create_model(name, img_size=size)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    found: dict[tuple[Any, ...], int] = {}

    def visit(jaxpr, times):
        for equation in jaxpr.eqns:
            if equation.params.get("name") == run_scan.__name__:
                shapes = tuple(var.aval.shape for var in equation.invars[:5])
                found[shapes] = found.get(shapes, 0) + times
                continue
            length = equation.params["length"] if equation.primitive.name == "scan" else 1
            for inner in inner_jaxprs(equation.params):
                visit(inner, times * length)

    visit(jax.make_jaxpr(model.apply)(model.shapes, image).jaxpr, 1)
    return found


def measure_scans(args, missed):
    """Time the largest scan of each model at two sizes, by `auto` and by the associative scan."""
    print("the scan with the most states of each model, one image")
    print(f"{'model':<24}{'px':>4}{'b, l, d':>18}{'n':>4}{'pass':>10}{'auto ms':>9}{'associative ms':>16}{'ratio':>7}")
    rows = []
    for name in args.models:
        for size in SIZES:
            scans = scans_of(name, size)
            if not scans:
                continue
            shapes = max(scans, key=lambda shapes: np.prod(shapes[0]) * shapes[2][-1])
            arguments = draw(shapes)
            for kind, ratio, row in time_scan(arguments, args.rounds):
                (u, _, A, *_) = shapes
                print(
                    f"{name:<24}{size:>4}{', '.join(map(str, u)):>18}{A[-1]:>4}{kind:>10}{row['auto']:9.1f}"
                    f"{row['associative']:16.1f}{ratio:7.1f}",
                    flush=True,
                )
                rows.append({"model": name, "size": size, "shape": u, "n": A[-1], "pass": kind, **row})
                what = f"the scan of {name} at {size} px, {kind}, is {ratio:.1f} times as fast; 3 is claimed"
                check(missed, what, ratio >= 3)
    return rows


def draw(shapes):
    """Draw u, delta, A, B and C in the shapes of a scan; delta is positive and A negative."""
    rng = np.random.default_rng(0)
    u, delta, A, B, C = (rng.normal(size=shape) for shape in shapes)
    return [jnp.asarray(x, jnp.float32) for x in (u, np.logaddexp(0, delta - 2), -np.exp(0.5 * A), B, C)]


def time_scan(arguments, rounds):
    """Yield each pass with the median ratio of the times, and the median times in ms by implementation."""
    for kind in ("forward", "gradient"):
        calls = {impl: partial(jax.jit(passes(impl)[kind]), *arguments) for impl in ("auto", "associative")}
        seconds = time_interleaved(calls, rounds)
        ratio = median_ratio(seconds["associative"], seconds["auto"])
        yield kind, ratio, {impl: 1e3 * median(of) for impl, of in seconds.items()}


def measure_tpu(args, missed):
    """Compile the training step of each model for a TPU v5e, and print estimates and memory."""
    if importlib.util.find_spec("libtpu") is None:
        print("the TPU is skipped: its compiler requires `pip install libtpu`")
        return None
    print(f"training step, bfloat16, {TPU_BATCH} images of 224 px, {TOPOLOGY}; the compiler's estimates")
    print(f"{'model':<24}{'Mcycles':>9}{'images/s':>10}{'of scans':>10}{'temporary':>13}{'compiled in':>13}")
    rows = []
    for name in args.models:
        config = default_config()
        config.data.name, config.model.name, config.model.dtype = "imagenet2012", name, "bfloat16"
        config.batch_size = TPU_BATCH
        config = parse_config(config)
        start = time.perf_counter()
        figures = plan(config, TOPOLOGY, dataset_of(config, TPU_BATCH, {"num_classes": 1000}))
        seconds, cycles = time.perf_counter() - start, figures["cycles"]
        scans = cycles - figures["cycles_by_rule"]["compiler"]  # the only kernels
        temporary = figures["memory"]["temporaries"] / 2**30
        print(
            f"{name:<24}{cycles / 1e6:9.1f}{figures['images_per_second']:10.0f}{scans / cycles:10.0%}"
            f"{temporary:9.2f} GiB{seconds:11.0f} s",
            flush=True,
        )
        rows.append({"model": name, "seconds": seconds, **figures})
    return rows


PARTS = {"cpu": measure_cpu, "scan": measure_scans, "tpu": measure_tpu}


if __name__ == "__main__":
    main()
