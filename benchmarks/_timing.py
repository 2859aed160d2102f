"""Helpers of the benchmarks: interleaved timing, a description of the machine, tables, and the check of claims."""

import json
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

import jax

from mambaout_jax.data.workers import count_cores


def time_interleaved(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Time all calls once per round, so that slow phases of the machine affect all of them equally.

    Each timed call follows an untimed one of the same kind, as in a loop; otherwise it would start with the caches and
    the memory of another call. JAX results are blocked on.

    Returns:
        The seconds of each round, by name.
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
    """Compute the median over rounds of the ratio within a round."""
    return median(n / d for n, d in zip(numerators, denominators, strict=True))


def machine() -> dict[str, Any]:
    """Return a description of the hardware and software of the measurement."""
    return {
        "machine": platform.machine(),
        "cores": count_cores(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }


def write_json(path: str | None, results: Mapping[str, Any]) -> None:
    """Write the results and the machine as JSON; do nothing without a path."""
    if path:
        Path(path).write_text(json.dumps({"machine": machine(), **results}, indent=2) + "\n")


def print_operations(operations: Iterable[Mapping[str, Any]]) -> None:
    """Print a row for each operation of a program that was compiled for a TPU."""
    print(f"{'Mcycles':>9}  {'operation':<32} {'result':<40} source")
    for row in operations:
        print(f"{row['cycles'] / 1e6:9.2f}  {row['operation']:<32.32} {row['shape']:<40.40} {row['source'][-70:]}")


def check(missed: list[str], what: str, holds: bool) -> None:
    """Append a claim to the list of missed ones unless it is met."""
    if not holds:
        missed.append(what)


def finish(missed: Sequence[str]) -> NoReturn:
    """Print the missed claims, and exit with 1 if there are any."""
    print(*(f"missed: {claim}" for claim in missed), sep="\n", end="\n" if missed else "")
    sys.exit(1 if missed else 0)
