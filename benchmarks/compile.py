"""Compile a training step with and without `scan_blocks`, and with each `remat`, for CPUs and for a TPU.

    pip install libtpu
    python benchmarks/compile.py [--config PATH] [--device cpu|v5e] [--forms NAME,NAME] [--json PATH]

The step is that of a run, with its model, augmentation and optimizer, but without mixup and cutmix, whose random draws
take an unknown time. It uses bfloat16 for a TPU v5e, and float32 with fewer images for CPUs. The target for
mambaout_base on v5e: with `scan_blocks` a third of the compilation time, and at most 1.1 times the estimated cycles.
Results are in docs/compile.md.

Seconds are wall time and, in parentheses, CPU time of all cores; ratios are of CPU time, which depends less on the load
of the machine. Memory and cycles are estimates of the compiler, which has no cycles for CPUs.
"""

import argparse
import sys
import time
from pathlib import Path

import jax
from _timing import machine, print_operations, write_json

from mambaout_jax import distributed
from mambaout_jax.models.options import REMAT
from mambaout_jax.plan.chips import CHIPS
from mambaout_jax.plan.compiler import TooLargeError, compile_for_tpu, program_memory, tpu_devices
from mambaout_jax.plan.hlo import estimated_operations
from mambaout_jax.run.config_file import read_config
from mambaout_jax.run.errors import RunError
from mambaout_jax.train.program import training_program

CONFIG = f"{Path(__file__).parents[1]}/configs/imagenet.py:mambaout_base"
# The first form, unrolled, is the baseline of the others.
FORMS = {
    "+".join([("scan" if scan else "unrolled"), *([] if remat == "none" else [remat])]): (scan, remat)
    for scan in (False, True)
    for remat in REMAT
}
DTYPES = {"cpu": "float32", "v5e": "bfloat16"}
BATCH = {"cpu": 8, "v5e": 64}
TOP = 10


def main() -> None:
    """Compile each form and print a row for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", default=str(CONFIG), metavar="PATH")
    parser.add_argument("--device", choices=tuple(BATCH), help="compile only for this device (default: both)")
    parser.add_argument(
        "--forms", default=",".join(FORMS), metavar="NAME,NAME", help=f"forms to compile (default: {', '.join(FORMS)})"
    )
    parser.add_argument("--batch", type=int, help="images per step (default: 8 on CPU, 64 on v5e)")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--top", action="store_true", help="list the most expensive operations of each form")
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args()
    forms = args.forms.split(",")
    if unknown := [form for form in forms if form not in FORMS]:
        parser.error(f"unknown forms {', '.join(unknown)}; choose from {', '.join(FORMS)}")
    jax.config.update("jax_enable_compilation_cache", False)
    print(*(f"{name}: {value}" for name, value in machine().items()), sep="\n")
    results = {}
    try:
        for device in BATCH if args.device is None else (args.device,):
            results[device] = compare(args, device, forms)
    except RunError as error:
        sys.exit(f"error: {error}")
    write_json(args.json, {"config": args.config, "devices": results})


def compare(args, device, forms):
    """Compile the forms for a device and return the figures of each."""
    batch = args.batch or BATCH[device]
    changes = {"model.dtype": DTYPES[device], "batch_size": batch, "augment.mixup_prob": 0.0, "microbatch_size": None}
    config = read_config(args.config).replace(changes)
    devices = jax.devices()[:1] if device == "cpu" else tpu_devices("v5e:1x1")
    mesh = distributed.make_mesh(devices=devices)
    # The first compilation of a process takes longer.
    compile_for_tpu(jax.jit(abs).lower(jax.ShapeDtypeStruct((), "float32", sharding=distributed.replicated(mesh))))
    print(f"\n{config.model['name']}, {device}, {batch} images, {DTYPES[device]}; seconds: wall (CPU)")
    titles = ("trace and lower", "compile", "of unrolled", "temporaries", "program", "Mcycles")
    print(" " * 16 + "".join(f"{title:>{width}}" for title, width in zip(titles, (16, 16, 12, 14, 11, 9), strict=True)))
    results = {}
    for form in forms:
        results[form] = estimate(config, mesh, device, args.classes, *FORMS[form])
        report(form, results[form], results.get("unrolled"), args.top)
    return results


def estimate(config, mesh, device, classes, scan, remat):
    """Compile one form and return seconds, bytes and, for a TPU, cycles and the most expensive operations."""
    config = config.replace({"model.scan_blocks": scan, "model.remat": remat})
    jax.clear_caches()
    task = config.build_task()
    model = task.build_model({"num_classes": classes})
    program = training_program(
        config, task, model, task.train_transform(model).empty(), num_images=config.batch_size, mesh=mesh
    )
    with jax.set_mesh(mesh):
        lowered, lower_seconds = timed(program.lower)
        try:
            compiled, compile_seconds = timed(lambda: compile_for_tpu(lowered))
        except TooLargeError as error:
            return {"lower_seconds": lower_seconds, "too_large": str(error)}
    figures = {"lower_seconds": lower_seconds, "compile_seconds": compile_seconds, "memory": program_memory(compiled)}
    if device != "cpu":
        operations = estimated_operations(compiled.as_text(), CHIPS[device])
        figures["cycles"] = sum(operation["cycles"] for operation in operations)
        figures["top"] = sorted(operations, key=lambda operation: -operation["cycles"])[:TOP]
    return figures


def timed(work):
    """Return the result of `work` and its seconds of wall time and CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, (time.perf_counter() - wall, time.process_time() - cpu)


def report(form, figures, unrolled, top):
    """Print the row of a form, with its ratio to the unrolled form."""
    line = f"{form:<16}{'{:.1f} ({:.1f})'.format(*figures['lower_seconds']):>16}"
    if "too_large" in figures:
        print(f"{line}  does not fit: {figures['too_large']}", flush=True)
        return
    line += f"{'{:.1f} ({:.1f})'.format(*figures['compile_seconds']):>16}"
    ratio = f"{total(figures) / total(unrolled):.2f}" if unrolled and "memory" in unrolled else ""
    temporaries, program = (figures["memory"][name] / 2**20 for name in ("temporaries", "program"))
    line += f"{ratio:>12}{temporaries:>10,.0f} MiB{program:>7,.0f} MiB"
    line += f"{figures['cycles'] / 1e6:>9.1f}" if "cycles" in figures else ""
    print(line, flush=True)
    if top and "top" in figures:
        print_operations(figures["top"])


def total(figures):
    """Return the total CPU seconds of lowering and compilation."""
    return figures["lower_seconds"][1] + figures["compile_seconds"][1]


if __name__ == "__main__":
    main()
