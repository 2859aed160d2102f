"""How the batch of a step is spread over devices, and over parts that are computed one after another."""

from mambaout_jax.run.errors import RunError


def accumulation_steps(batch_size: int, num_devices: int, microbatch_size: int | None, mixup_group: int) -> int:
    """Find the least number of equal parts of a batch that no device computes too many images at once of.

    Args:
        batch_size: images of a step, over all devices.
        microbatch_size: most images that a device computes at once; None for any number.
        mixup_group: images that mix among themselves; 1 where nothing is mixed.

    Raises:
        RunError: the batch is not a multiple of the devices, or a device's share of it not one of `mixup_group`.
    """
    share, rest = divmod(batch_size, num_devices)
    unit = num_devices * mixup_group
    below = batch_size // unit * unit
    near = " or ".join(str(size) for size in (below, below + unit) if size)
    if rest:
        groups = f" in groups of config.augment.mixup_group {mixup_group}" if mixup_group > 1 else ""
        raise RunError(
            f"config.batch_size is {batch_size}; equal shares for {num_devices} devices{groups} are expected: "
            f"the nearest size is {near}"
        )
    if share % mixup_group:
        fits = max(group for group in range(1, mixup_group) if share % group == 0)
        raise RunError(
            f"config.augment.mixup_group is {mixup_group}; a divisor of the {share} images of a device is expected, so "
            f"that mixing stays on it: set it to {fits}, or config.batch_size to {near}"
        )
    limit = microbatch_size or share
    return next(parts for parts in range(1, share + 1) if share % parts == 0 and share // parts <= limit)


def check_eval_batch(batch_size: int, num_devices: int) -> None:
    """Raise RunError unless the devices take equal shares of a batch that is evaluated."""
    if batch_size % num_devices:
        below = batch_size // num_devices * num_devices
        near = " or ".join(str(size) for size in (below, below + num_devices) if size)
        raise RunError(
            f"config.eval_batch_size is {batch_size}; a multiple of the {num_devices} devices is expected: the nearest "
            f"size is {near}"
        )


def describe_batch(batch_size: int, num_devices: int, parts: int) -> str:
    """Say how a batch of a step is spread over devices, and over the parts that are computed one after another."""
    share = batch_size // num_devices
    where = f"{share:,} on each of {num_devices:,} devices" if num_devices > 1 else "on one device"
    how = f"accumulated over {parts:,} parts of {share // parts:,}" if parts > 1 else "computed at once"
    return f"a step takes {batch_size:,} images, {where}, {how}"
