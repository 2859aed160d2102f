"""Estimates of the memory, traffic, time and cost of a training run on TPUs, by the TPU compiler."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax

from mambaout_jax import distributed
from mambaout_jax.models import Model
from mambaout_jax.models.macs import count_model_macs
from mambaout_jax.plan.chips import Chip
from mambaout_jax.plan.compiler import TooLargeError, chip_of, compile_for_tpu, program_memory, tpu_devices
from mambaout_jax.plan.hlo import bounded_loops, collective_bytes, estimated_operations, uncounted_loops
from mambaout_jax.plan.kernels import kernel_cycles
from mambaout_jax.plan.program import Dataset, planned_program
from mambaout_jax.run.config import RunConfig
from mambaout_jax.train.program import TrainingProgram

TOP = 10
# A multiply-add is two FLOPs; the backward pass computes gradients of inputs and of weights.
TRAINING_FLOPS_PER_MAC = 2 * 3
# Rows of a vector register; the search for a microbatch considers only multiples.
ROWS = 8


def plan(
    config: RunConfig,
    topology: str,
    dataset: Dataset,
    *,
    chip_hour_price: float | None = None,
    find_batch: bool = False,
) -> dict[str, Any]:
    """Compile the training step of a config for a topology, and return the compiler's estimates.

    Args:
        topology: "generation:shape", such as "v5e:4x4".
        find_batch: search for the largest microbatch that fits into a chip, with two or more additional compilations.

    Returns:
        All figures; memory and bytes are per chip. If the step needs more memory than a chip has, "fits" is false and
        the figures for throughput and time are absent.

    Raises:
        RunError, ModelError, DistributedError: the config is invalid for the topology, or the topology is unknown.
    """
    chip, devices = chip_of(topology), tpu_devices(topology)
    mesh = distributed.make_mesh(config.fsdp, devices)
    model, program = planned_program(config, config.build_task(), dataset, mesh)
    microbatch = config.batch_size // mesh.size // program.grad_accum_steps
    figures: dict[str, Any] = {
        "topology": topology,
        "chips": mesh.size,
        "batch_size": config.batch_size,
        "batch_per_chip": config.batch_size // mesh.size,
        "grad_accum_steps": program.grad_accum_steps,
        "fsdp": config.fsdp,
        "memory": state_bytes(program) | {"limit": round(chip.memory)},
        "fits": False,
    }
    try:
        with jax.set_mesh(mesh):
            compiled = compile_for_tpu(program.lower())
    except TooLargeError as error:
        figures["too_large"] = str(error)
    else:
        figures["memory"] |= program_memory(compiled)
        figures["fits"] = figures["memory"]["total"] <= chip.memory
        text = compiled.as_text()
        figures["collective_bytes"], figures["uncounted_loops"] = collective_bytes(text), uncounted_loops(text)
        figures["bounded_loops"] = bounded_loops(text)
        operations = estimated_operations(text, chip)
        if any(operation["rule"] != "compiler" for operation in operations):
            operations = estimated_operations(text, chip, kernel_cycles(config, topology, dataset))
        figures |= throughput(operations, chip, config.batch_size, mesh.size, flops_per_image(model))
        figures |= run_time(figures["step_seconds"], config.total_steps(program.steps_per_epoch), mesh.size)
        if chip_hour_price is not None:
            figures["cost"] = chip_hour_price * figures["chip_hours"]
    if find_batch:
        fits = "total" in figures["memory"]
        known = {microbatch: figures["memory"]["total"]} if fits else {}

        def memory_of(batch: int) -> int | None:
            return _memory_at(config, dataset, mesh, batch)

        figures["largest_microbatch"], figures["largest_microbatch_memory"] = largest_microbatch(
            memory_of, chip.memory, known, microbatch if fits else microbatch // 2
        )
    return figures


def state_bytes(program: TrainingProgram) -> dict[str, int]:
    """Count the bytes per chip of parameters, optimizer state, EMA, teacher and batch."""
    state = program.state
    trees = {
        "parameters": state.variables,
        "optimizer": state.opt_state,
        "ema": state.ema,
        "teacher": program.teacher,
        "batch": program.batch,
    }
    return {name: sum(map(_bytes_on_chip, jax.tree.leaves(tree))) for name, tree in trees.items()}


def _bytes_on_chip(leaf: jax.ShapeDtypeStruct) -> int:
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def flops_per_image(model: Model) -> int:
    """Count the FLOPs of a training step per image, without recomputation for rematerialization."""
    return TRAINING_FLOPS_PER_MAC * count_model_macs(model)


def throughput(
    operations: list[dict[str, Any]], chip: Chip, batch_size: int, num_chips: int, image_flops: int
) -> dict[str, Any]:
    """Compute the time, rates and most expensive operations of a step."""
    cycles = sum(operation["cycles"] for operation in operations)
    seconds = cycles / chip.clock
    rules = ("compiler", "schedule", "bytes")
    return {
        "cycles": cycles,
        "cycles_by_rule": {
            rule: sum(operation["cycles"] for operation in operations if operation["rule"] == rule) for rule in rules
        },
        "clock": chip.clock,
        "step_seconds": seconds,
        "images_per_second": batch_size / seconds,
        "flops_per_image": image_flops,
        "mfu": image_flops * batch_size / num_chips / seconds / chip.peak,
        "top": sorted(operations, key=lambda operation: -operation["cycles"])[:TOP],
    }


def run_time(step_seconds: float, steps: int, num_chips: int) -> dict[str, Any]:
    """Compute the time of all steps of a run, without evaluations and startup."""
    hours = steps * step_seconds / 3600
    return {"steps": steps, "hours": hours, "chip_hours": hours * num_chips}


def _memory_at(config: RunConfig, dataset: Dataset, mesh: jax.sharding.Mesh, microbatch: int) -> int | None:
    """Compile the step with `microbatch` images per chip and return its memory; None if it does not fit.

    The number of accumulation steps keeps the batch size close to the config's.
    """
    grad_accum_steps = max(config.batch_size // mesh.size // microbatch, 1)
    batch_size = microbatch * grad_accum_steps * mesh.size
    config = config.replace({"batch_size": batch_size, "microbatch_size": microbatch})
    task = config.build_task().with_row_group(microbatch * grad_accum_steps)
    _, program = planned_program(config, task, Dataset(batch_size, dataset.labels), mesh)
    try:
        with jax.set_mesh(mesh):
            return program_memory(compile_for_tpu(program.lower()))["total"]
    except TooLargeError:
        return None


def largest_microbatch(
    memory_of: Callable[[int], int | None], limit: float, known: Mapping[int, int], start: int
) -> tuple[int, int]:
    """Find the largest microbatch that fits, by linear extrapolation from two batches and a check of the result.

    Args:
        memory_of: returns the bytes for a batch, or None if it does not fit.
        limit: available bytes.
        known: known bytes by batch.
        start: the first batch to try.

    Returns:
        The batch, 0 if none fits, and its bytes.
    """
    fits = {batch: memory for batch, memory in known.items() if memory <= limit}
    first = _round_down(start)
    while not fits:
        memory = memory_of(first)
        if memory is not None and memory <= limit:
            fits[first] = memory
        elif first == ROWS:
            return 0, 0
        else:
            first = _round_down(first // 2)
    (batch, memory), *_ = fits.items()
    # A batch that uses less than half of the memory can be doubled.
    other = 2 * batch if 2 * memory <= limit or batch < 2 * ROWS else batch // 2
    other_memory = memory_of(other)
    if other_memory is None or other_memory > limit:
        guess = other - ROWS
    else:
        fits[other] = other_memory
        slope = (other_memory - memory) / (other - batch)
        guess = max(_round_down(batch + (limit - memory) / slope) if slope > 0 else 0, *fits)
    while guess not in fits:
        memory = memory_of(guess)
        if memory is not None and memory <= limit:
            fits[guess] = memory
        else:
            guess = max(guess - ROWS, *fits)
    return guess, fits[guess]


def _round_down(batch: float) -> int:
    return max(int(batch) // ROWS * ROWS, ROWS)
