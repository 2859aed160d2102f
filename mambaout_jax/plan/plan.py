"""What a training run asks of TPUs, in memory, traffic, time and money: by their compiler, before they are paid for."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from mambaout_jax import distributed
from mambaout_jax.data import DataError
from mambaout_jax.data.prepare import ensure_prepared
from mambaout_jax.models import Model
from mambaout_jax.models.macs import count_macs
from mambaout_jax.plan.chips import Chip
from mambaout_jax.plan.compiler import TooLargeError, chip_of, compile_for_tpu, program_memory, tpu_devices
from mambaout_jax.plan.hlo import collective_bytes, estimated_operations, uncounted_loops
from mambaout_jax.plan.kernels import kernel_cycles
from mambaout_jax.run.errors import RunError
from mambaout_jax.run.workdir import build_model
from mambaout_jax.tasks.classification.source import open_source
from mambaout_jax.train.program import TrainingProgram, training_program

TOP = 10
# A multiplication and an addition; forward, and backward for inputs and for weights.
FLOPS_PER_MAC = 2 * 3
# Rows of a vector register: batches on a chip are searched among its multiples.
ROWS = 8


class Dataset(NamedTuple):
    """Hold what of a dataset decides about a program: the images of its training split, and its classes."""

    num_images: int
    num_classes: int


# Training splits, for where they are not prepared.
KNOWN: Mapping[str, Dataset] = MappingProxyType({"imagenet2012": Dataset(1_281_167, 1000)})


def dataset_of(data: Any, num_images: int | None = None, num_classes: int | None = None) -> Dataset:
    """Tell the size of a config's dataset: as given, as prepared on this machine, or as known by name.

    Args:
        data: the section of the config.

    Raises:
        RunError: it is not known.
    """
    if num_images is not None and num_classes is not None:
        return Dataset(num_images, num_classes)
    try:
        ensure_prepared(data.name, data.data_dir)
        source = open_source(data.name, data.train_split, data.data_dir)
        size = Dataset(len(source), len(source.class_names))
    except DataError as error:
        size = KNOWN.get(data.name.partition(":")[0]) if data.train_split == "train" else None
        if size is None:
            raise RunError(
                f"split {data.train_split!r} of {data.name} is not prepared here, and its size is not known; give "
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
    """Compile the training step of a config for a topology, and tell what the compiler expects of it.

    Args:
        topology: "generation:shape", such as "v5e:4x4".
        find_batch: look for the most images that a chip can compute at once, by two or more further compilations.

    Returns:
        Every figure, of one chip where it says no more; "fits" is false, and there is nothing about speed, where the
        step takes more memory than a chip has.

    Raises:
        RunError, ModelError, ParallelError: the config does not fit the topology, or there is none of that name.
    """
    chip, devices = chip_of(topology), tpu_devices(topology)
    mesh = distributed.make_mesh(config.mesh.fsdp, devices)
    model = build_model(config, dataset.num_classes)
    program = training_program(config, model, dataset.num_images, mesh)
    at_once = config.batch_size // mesh.size // program.parts
    figures: dict[str, Any] = {
        "topology": topology,
        "chips": mesh.size,
        "batch_size": config.batch_size,
        "batch_per_chip": config.batch_size // mesh.size,
        "parts": program.parts,
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
            figures["money"] = chip_hour_price * figures["chip_hours"]
    if find_batch:
        fits = "total" in figures["memory"]
        known = {at_once: figures["memory"]["total"]} if fits else {}

        def memory_of(batch: int) -> int | None:
            return _memory_at(config, model, mesh, batch)

        figures["largest_batch_at_once"], figures["largest_batch_memory"] = largest_batch(
            memory_of, chip.memory, known, at_once if fits else at_once // 2
        )
    return figures


def state_bytes(program: TrainingProgram) -> dict[str, int]:
    """Count the bytes that a chip keeps of parameters, optimizer and their average, and of a batch."""
    state = program.state
    parts = {"parameters": state.variables, "optimizer": state.opt_state, "ema": state.ema, "batch": program.batch}
    return {name: sum(map(_bytes_on_chip, jax.tree.leaves(part))) for name, part in parts.items()}


def _bytes_on_chip(leaf: jax.ShapeDtypeStruct) -> int:
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def flops_per_image(model: Model) -> int:
    """Count what a training step has to compute for an image; what is computed twice for lack of memory counts once."""
    variables = jax.eval_shape(model.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, *model.input_spec.size, model.in_chans), "float32")
    return FLOPS_PER_MAC * count_macs(model.apply, variables, image)


def speed(
    operations: list[dict[str, Any]], chip: Chip, batch_size: int, num_chips: int, image_flops: int
) -> dict[str, Any]:
    """Give time, rates and the costliest operations of a step."""
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
    """Give the time of all steps of a run, evaluations and starts not among them."""
    hours = steps * step_seconds / 3600
    return {"steps": steps, "hours": hours, "chip_hours": hours * num_chips}


def _memory_at(config: ConfigDict, model: Model, mesh: jax.sharding.Mesh, batch: int) -> int | None:
    """Compile the step with `batch` images on a chip at once, and tell its memory; None where there is too little.

    As many parts make a batch as come closest to the config's.
    """
    config = config.copy_and_resolve_references()
    parts = max(config.batch_size // mesh.size // batch, 1)
    config.batch_size = batch * parts * mesh.size
    config.microbatch_size = batch
    config.augment.mixup_group = math.gcd(config.augment.mixup_group, batch * parts)
    program = training_program(config, model, config.batch_size, mesh)
    try:
        with jax.set_mesh(mesh):
            return program_memory(compile_for_tpu(program.lower()))["total"]
    except TooLargeError:
        return None


def largest_batch(
    memory_of: Callable[[int], int | None], limit: float, known: Mapping[int, int], start: int
) -> tuple[int, int]:
    """Find the most images that fit: by a line through two batches, and a check of what it says.

    Args:
        memory_of: gives the bytes that a batch takes, or None for more than there are.
        limit: bytes that there are.
        known: what is known of it.
        start: the batch to look near.

    Returns:
        The batch, 0 where none fits, and its bytes.
    """
    fits = {batch: memory for batch, memory in known.items() if memory <= limit}
    first = _down(start)
    while not fits:
        memory = memory_of(first)
        if memory is not None and memory <= limit:
            fits[first] = memory
        elif first == ROWS:
            return 0, 0
        else:
            first = _down(first // 2)
    (batch, memory), *_ = fits.items()
    # What takes less than half of the memory fits twice.
    other = 2 * batch if 2 * memory <= limit or batch < 2 * ROWS else batch // 2
    other_memory = memory_of(other)
    if other_memory is None or other_memory > limit:
        guess = other - ROWS
    else:
        fits[other] = other_memory
        slope = (other_memory - memory) / (other - batch)
        guess = max(_down(batch + (limit - memory) / slope) if slope > 0 else 0, *fits)
    while guess not in fits:
        memory = memory_of(guess)
        if memory is not None and memory <= limit:
            fits[guess] = memory
        else:
            guess = max(guess - ROWS, *fits)
    return guess, fits[guess]


def _down(batch: float) -> int:
    return max(int(batch) // ROWS * ROWS, ROWS)
