"""Estimates of the memory, traffic, time and cost of a training run on TPUs, by the TPU compiler."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from mambaout_jax import distributed
from mambaout_jax.data import DataError, open_source
from mambaout_jax.models import Model
from mambaout_jax.models.macs import count_macs
from mambaout_jax.plan.chips import Chip
from mambaout_jax.plan.compiler import TooLargeError, chip_of, compile_for_tpu, program_memory, tpu_devices
from mambaout_jax.plan.hlo import collective_bytes, estimated_operations, uncounted_loops
from mambaout_jax.plan.kernels import kernel_cycles
from mambaout_jax.run.errors import RunError
from mambaout_jax.run.workdir import build_model
from mambaout_jax.train.program import TrainingProgram, training_program

TOP = 10
# A multiplication and an addition; forward, and backward for inputs and for weights.
FLOPS_PER_MAC = 2 * 3
# Rows of a vector register; microbatches are searched among its multiples.
ROWS = 8


class Dataset(NamedTuple):
    """The properties of a dataset that a program depends on: images in its training split, and classes."""

    num_images: int
    num_classes: int


# Training splits of datasets that need not be prepared.
KNOWN: Mapping[str, Dataset] = MappingProxyType({"imagenet2012": Dataset(1_281_167, 1000)})


def dataset_of(data: Any, num_images: int | None = None, num_classes: int | None = None) -> Dataset:
    """Return the size of a config's dataset: as given, as prepared on this machine, or from `KNOWN`.

    Args:
        data: the section of the config.

    Raises:
        RunError: the size is unknown.
    """
    if num_images is not None and num_classes is not None:
        return Dataset(num_images, num_classes)
    try:
        source = open_source(data.name, data.train_split, data.data_dir)
        size = Dataset(len(source), len(source.class_names))
    except DataError as error:
        size = KNOWN.get(data.name.partition(":")[0]) if data.train_split == "train" else None
        if size is None:
            raise RunError(
                f"split {data.train_split!r} of {data.name} is not prepared here, and its size is unknown; give "
                "--num-images and --num-classes"
            ) from error
    return Dataset(num_images or size.num_images, num_classes or size.num_classes)


def plan(
    config: ConfigDict,
    topology: str,
    dataset: Dataset,
    *,
    chip_hour_price: float | None = None,
    find_batch: bool = False,
) -> dict[str, Any]:
    """Compile the training step of a config for a topology, and return the compiler's estimates.

    Args:
        topology: "generation:shape", such as "v5e:4x4".
        find_batch: search the largest microbatch that fits into a chip, by two or more further compilations.

    Returns:
        All figures; memory and bytes are per chip. If the step needs more memory than a chip has, "fits" is false and
        there are no figures for speed.

    Raises:
        RunError, ModelError, ParallelError: the config does not fit the topology, or the topology is unknown.
    """
    chip, devices = chip_of(topology), tpu_devices(topology)
    mesh = distributed.make_mesh(config.mesh.fsdp, devices)
    model = build_model(config, dataset.num_classes)
    program = training_program(config, model, dataset.num_images, mesh)
    microbatch = config.batch_size // mesh.size // program.parts
    figures: dict[str, Any] = {
        "topology": topology,
        "chips": mesh.size,
        "batch_size": config.batch_size,
        "batch_per_chip": config.batch_size // mesh.size,
        "grad_accum_steps": program.parts,
        "fsdp": config.mesh.fsdp,
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
        operations = estimated_operations(text, chip)
        if any(operation["rule"] != "compiler" for operation in operations):
            operations = estimated_operations(text, chip, kernel_cycles(config, topology, *dataset))
        figures |= speed(operations, chip, config.batch_size, mesh.size, flops_per_image(model))
        figures |= schedule(figures["step_seconds"], program.epoch_steps * config.num_epochs, mesh.size)
        if chip_hour_price is not None:
            figures["cost"] = chip_hour_price * figures["chip_hours"]
    if find_batch:
        fits = "total" in figures["memory"]
        known = {microbatch: figures["memory"]["total"]} if fits else {}

        def memory_of(batch: int) -> int | None:
            return _memory_at(config, model, mesh, batch)

        figures["largest_microbatch"], figures["largest_microbatch_memory"] = largest_microbatch(
            memory_of, chip.memory, known, microbatch if fits else microbatch // 2
        )
    return figures


def state_bytes(program: TrainingProgram) -> dict[str, int]:
    """Count the bytes per chip of parameters, optimizer, average and batch."""
    state = program.state
    trees = {"parameters": state.variables, "optimizer": state.opt_state, "ema": state.ema, "batch": program.batch}
    return {name: sum(map(_bytes_on_chip, jax.tree.leaves(tree))) for name, tree in trees.items()}


def _bytes_on_chip(leaf: jax.ShapeDtypeStruct) -> int:
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def flops_per_image(model: Model) -> int:
    """Count the FLOPs of a training step per image, without recomputation for rematerialization."""
    variables = jax.eval_shape(model.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, *model.input_spec.size, model.in_chans), "float32")
    return FLOPS_PER_MAC * count_macs(model.apply, variables, image)


def speed(
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


def schedule(step_seconds: float, steps: int, num_chips: int) -> dict[str, Any]:
    """Compute the time of all steps of a run, without evaluations and startup."""
    hours = steps * step_seconds / 3600
    return {"steps": steps, "hours": hours, "chip_hours": hours * num_chips}


def _memory_at(config: ConfigDict, model: Model, mesh: jax.sharding.Mesh, batch: int) -> int | None:
    """Return the bytes per chip of a step with microbatches of `batch` images; None if it does not fit.

    The number of accumulation steps is the one whose batch size is closest to the config's.
    """
    config = config.copy_and_resolve_references()
    grad_accum_steps = max(config.batch_size // mesh.size // batch, 1)
    config.batch_size = batch * grad_accum_steps * mesh.size
    config.microbatch_size = batch
    config.augment.mixup_group = math.gcd(config.augment.mixup_group, batch * grad_accum_steps)
    program = training_program(config, model, config.batch_size, mesh)
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
        known: bytes by batch, as far as known.
        start: the batch to start from.

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
    # A batch that takes less than half of the memory fits twice.
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
