"""Shared by the benchmarks: timing in turn, a description of the machine, the JSON file."""

import json
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import jax

from mambaout_jax.data.workers import count_cores


def time_in_turn(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Time each call `rounds` times, one after the other in every round, so that slow moments affect all alike.

    Each timed call follows an untimed one of the same kind, as in a loop; otherwise it would start with the caches and
    the memory of another call. JAX results are blocked on.

    Returns:
        Seconds by name, in the order of the rounds.
    """
    seconds = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            jax.block_until_ready(call())
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(numerators: list[float], denominators: list[float]) -> float:
    """Compute the median of the ratios within each round."""
    return median(n / d for n, d in zip(numerators, denominators, strict=True))


def machine() -> dict[str, Any]:
    """Describe what the figures were measured on."""
    return {
        "machine": platform.machine(),
        "cores": count_cores(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }


def write_json(path: str | None, results: Mapping[str, Any]) -> None:
    """Write the results and the machine as JSON; without a path do nothing."""
    if path:
        Path(path).write_text(json.dumps({"machine": machine(), **results}, indent=2) + "\n")
