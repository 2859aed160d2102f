"""How the batch of a step is split over devices, and over microbatches that are computed one after another."""

from mambaout_jax.run.errors import RunError
from mambaout_jax.tasks.api import RowGroup


def grad_accum_steps(batch_size: int, num_devices: int, microbatch_size: int | None, group: RowGroup) -> int:
    """Compute the smallest number of equal microbatches of which none is too large for a device.

    Args:
        batch_size: images of a step, over all devices.
        microbatch_size: most images that a device computes at once; None for any number.
        group: images that stay on one device.

    Raises:
        RunError: the batch is not a multiple of the devices, or the share of a device not one of the group.
    """
    share, rest = divmod(batch_size, num_devices)
    near = _nearest_multiples(batch_size, num_devices * group.size)
    if rest:
        groups = f" in groups of config.{group.key} {group.size}" if group.size > 1 else ""
        raise RunError(
            f"config.batch_size is {batch_size}; equal shares for {num_devices} devices{groups} are expected: "
            f"the nearest size is {near}"
        )
    if share % group.size:
        fits = max(size for size in range(1, group.size) if share % size == 0)
        raise RunError(
            f"config.{group.key} is {group.size}; a divisor of the {share} images of a device is expected, so that a "
            f"group stays on it: set it to {fits}, or config.batch_size to {near}"
        )
    limit = microbatch_size or share
    return next(steps for steps in range(1, share + 1) if share % steps == 0 and share // steps <= limit)


def check_eval_batch(batch_size: int, num_devices: int) -> None:
    """Check that devices get equal shares of an evaluation batch.

    Raises:
        RunError: they do not.
    """
    if batch_size % num_devices:
        raise RunError(
            f"config.eval_batch_size is {batch_size}; a multiple of the {num_devices} devices is expected: the nearest "
            f"size is {_nearest_multiples(batch_size, num_devices)}"
        )


def _nearest_multiples(size: int, unit: int) -> str:
    below = size // unit * unit
    return " or ".join(str(multiple) for multiple in (below, below + unit) if multiple)


def describe_batch(batch_size: int, num_devices: int, steps: int) -> str:
    """Return in words how a batch is split over devices and microbatches."""
    share = batch_size // num_devices
    where = f"{share:,} on each of {num_devices:,} devices" if num_devices > 1 else "on one device"
    how = f"accumulated over {steps:,} microbatches of {share // steps:,}" if steps > 1 else "computed at once"
    return f"{batch_size:,} images a step, {where}, {how}"
