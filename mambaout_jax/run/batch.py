"""The split of a step's batch over devices and sequential microbatches."""

from mambaout_jax.run.errors import RunError
from mambaout_jax.tasks.api import RowGroup
from mambaout_jax.words import count


def grad_accum_steps(batch_size: int, num_devices: int, microbatch_size: int | None, group: RowGroup) -> int:
    """Compute the smallest number of equal microbatches that respects the limit per device.

    Args:
        batch_size: images of a step over all devices.
        microbatch_size: largest number of images of a microbatch on one device; None for no limit.
        group: images that must stay on one device.

    Raises:
        RunError: the devices do not divide the batch, or the group size does not divide the images of a device.
    """
    share, rest = divmod(batch_size, num_devices)
    near = _nearest_multiples(batch_size, num_devices * group.size)
    if rest:
        groups = f" times config.{group.key} {group.size}" if group.size > 1 else ""
        raise RunError(
            f"config.batch_size is {batch_size}; expected a multiple of the {count(num_devices, 'device')}{groups}: "
            f"the nearest is {near}"
        )
    if share % group.size:
        fits = max(size for size in range(1, group.size) if share % size == 0)
        raise RunError(
            f"config.{group.key} is {group.size}; expected a divisor of the {count(share, 'image')} per device, "
            f"because a group must not span devices: set it to {fits}, or config.batch_size to {near}"
        )
    limit = microbatch_size or share
    return next(steps for steps in range(1, share + 1) if share % steps == 0 and share // steps <= limit)


def check_eval_batch(batch_size: int, num_devices: int) -> None:
    """Check that the devices divide an evaluation batch.

    Raises:
        RunError: they do not.
    """
    if batch_size % num_devices:
        raise RunError(
            f"config.eval_batch_size is {batch_size}; expected a multiple of the {count(num_devices, 'device')}: the "
            f"nearest is {_nearest_multiples(batch_size, num_devices)}"
        )


def _nearest_multiples(size: int, unit: int) -> str:
    below = size // unit * unit
    return " or ".join(str(multiple) for multiple in (below, below + unit) if multiple)


def describe_batch(batch_size: int, num_devices: int, steps: int) -> str:
    """Return a description of the split of a batch over devices and microbatches."""
    share = batch_size // num_devices
    where = f"{share:,} on each of {count(num_devices, 'device')}" if num_devices > 1 else "on one device"
    how = f"in {count(steps, 'microbatch')} of {share // steps:,}" if steps > 1 else "in one microbatch"
    return f"{count(batch_size, 'image')} per step, {where}, {how}"
