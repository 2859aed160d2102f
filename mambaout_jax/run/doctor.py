"""Checks of the hosts before a run: each on its own, and whether they agree."""

import collections
import contextlib
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from mambaout_jax import distributed
from mambaout_jax.data import DataError, open_records
from mambaout_jax.data.prepare import ensure_prepared
from mambaout_jax.errors import reason
from mambaout_jax.machine import MachineError, describe_fault
from mambaout_jax.process import within_seconds
from mambaout_jax.run.errors import RunError
from mambaout_jax.run.files import find_write_error
from mambaout_jax.run.workdir import PACKAGES, open_workdir
from mambaout_jax.words import count, processes

COLLECTIVE_SECONDS = 60
# Hosts with NTP differ by less, network latency included.
MAX_SKEW_SECONDS = 2.0
READ_SECONDS = 2.0
# Device files of TPU chips: the first up to v4, the second since v5e.
_TPU_FILES = ("/dev/accel0", "/dev/vfio/0")


class Check(NamedTuple):
    """The result of one check on one host.

    Args:
        name: displayed name.
        value: the result as text.
        fault: the problem and its remedy; empty for none.
        must_match: whether the value must be the same on all hosts.
    """

    name: str
    value: str
    fault: str = ""
    must_match: bool = False


class CheckResult(NamedTuple):
    """The result of a check on all hosts: the most frequent value, and the faults of the hosts with a problem."""

    name: str
    value: str
    faults: tuple[str, ...]


def run_checks(data: tuple[str, str, str | None] | None, workdir: epath.PathLike | None) -> Iterator[CheckResult]:
    """Check this host and compare it with the others; a collective operation.

    Args:
        data: name, split and folder of a prepared dataset; None to skip this check.
        workdir: the workdir to check; None to skip this check.
    """
    checks: list[Callable[[], list[Check]]] = [_versions, _devices, _cache, _collective, _clock]
    if data is not None:
        checks.append(lambda: _data(*data))
    if workdir is not None:
        checks.append(lambda: _workdir(workdir))
    for check in checks:
        yield from _on_all_hosts(check)


def _on_all_hosts(check: Callable[[], list[Check]]) -> list[CheckResult]:
    gathered = distributed.allgather_strings("comparing hosts", json.dumps(check()))
    hosts = [[Check(*fields) for fields in json.loads(text)] for text in gathered]
    return [_compare(checks) for checks in zip(*hosts, strict=True)]


def _compare(checks: Sequence[Check]) -> CheckResult:
    """Combine the results of all hosts; a host that differs from the majority has a fault."""
    most = collections.Counter(check.value for check in checks).most_common(1)[0][0]
    faults = []
    for host, check in enumerate(checks):
        where = f"process {host}: " if len(checks) > 1 else ""
        if check.fault:
            faults.append(f"{where}{check.fault}")
        elif check.must_match and check.value != most:
            faults.append(f"{where}{check.value} differs from {most} on most hosts; use the same on all")
    values = [check.value for check in checks]
    shown = most if checks[0].must_match or len(set(values)) == 1 else ", ".join(values)
    return CheckResult(checks[0].name, shown, tuple(faults))


def _versions() -> list[Check]:
    versions = {"Python": platform.python_version()}
    for name in (*PACKAGES, "libtpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    versions.setdefault("libtpu", "none")
    return [Check(name, version, must_match=True) for name, version in versions.items()]


def _devices() -> list[Check]:
    platform_name, kind = jax.default_backend(), jax.local_devices()[0].device_kind
    fault = ""
    if platform_name != "tpu" and any(map(os.path.exists, _TPU_FILES)):
        fault = (
            f"this host has a TPU but JAX finds only {platform_name}; install jax[tpu], or stop other processes on the "
            "TPU"
        )
    expected = len(os.environ.get("TPU_WORKER_HOSTNAMES", "").split(","))
    seen = jax.process_count()
    missing = "" if seen >= expected else f"{seen} of {count(expected, 'host')} joined; add --distributed on every host"
    return [
        Check("hosts", f"{seen} of {max(expected, seen)}", missing, must_match=True),
        Check("chips per host", f"{jax.local_device_count()} x {kind}", fault, must_match=True),
        Check("chips", str(jax.device_count()), must_match=True),
    ]


def _collective() -> list[Check]:
    """Check the sum of ones over all devices, with a time limit."""

    def sum_ones() -> tuple[float, float]:
        mesh = distributed.make_mesh()
        ones = distributed.batch_sharding(mesh)
        total = jax.jit(jnp.sum, out_shardings=distributed.replicated(mesh))
        local = np.ones(jax.local_device_count(), np.float32)
        for _ in range(2):  # the first call compiles
            placed = jax.make_array_from_process_local_data(ones, local)
            started = time.perf_counter()
            value = float(total(placed))
        return value, time.perf_counter() - started

    try:
        value, seconds = within_seconds(COLLECTIVE_SECONDS, sum_ones)
    except TimeoutError:
        fault = f"a sum over all devices took more than {COLLECTIVE_SECONDS} s; check the network between hosts"
        return [Check("collective", "none", fault)]
    correct = value == jax.device_count()
    fault = (
        ""
        if correct
        else f"the sum of ones over {count(jax.device_count(), 'device')} was {value:g}; expected the number of "
        "devices: restart all hosts, and replace one that keeps failing"
    )
    return [Check("collective", f"{1e3 * seconds:.1f} ms", fault)]


def _clock() -> list[Check]:
    distributed.barrier("before comparing clocks")
    times = [float(text) for text in distributed.allgather_strings("comparing clocks", repr(time.time()))]
    skew = times[jax.process_index()] - sorted(times)[len(times) // 2]
    fault = (
        ""
        if abs(skew) < MAX_SKEW_SECONDS
        else f"its clock differs by {skew:+.1f} s from the others; synchronize it with NTP"
    )
    return [Check("clock", f"{skew:+.2f} s", fault)]


def _cache() -> list[Check]:
    folder = jax.config.jax_compilation_cache_dir
    if folder is None:
        return [Check("compilation cache", "none; set JAX_COMPILATION_CACHE_DIR", must_match=True)]
    if fault := _fault(epath.Path(folder)):
        jax.config.update("jax_enable_compilation_cache", False)  # the next checks would hang on it
    return [Check("compilation cache", folder, fault, must_match=True)]


def _data(name: str, split: str, data_dir: str | None) -> list[Check]:
    try:
        ensure_prepared(name, data_dir)
        source = open_records(name, split, data_dir)
        number, size, started = 0, 0, time.perf_counter()
        # A stride of a large prime covers the whole split, as shuffled training does.
        while number < len(source) and time.perf_counter() - started < READ_SECONDS:
            size += sum(feature.ByteSize() for feature in source[number * 7919 % len(source)].values())
            number += 1
        seconds = time.perf_counter() - started
    except (DataError, OSError) as error:
        return [Check("data", "none", describe_fault(error) or reason(error)), Check("reading", "none")]
    return [
        Check("data", f"{count(len(source), 'record')} of {source.name}", must_match=True),
        Check("reading", f"{number / seconds:,.0f} records/s, {size / seconds / 2**20:.1f} MiB/s"),
    ]


def _workdir(path: epath.PathLike) -> list[Check]:
    try:
        workdir = open_workdir(path, to_write=True)
        fault = _fault(workdir)
    except (MachineError, RunError) as error:
        fault = str(error)
    # check_shared_filesystem is collective: all hosts must call it, or none.
    faults = distributed.allgather_strings("checking the workdir", fault)
    if not any(faults) and (missing := distributed.check_shared_filesystem(workdir)):
        fault = f"it is a different folder on {processes(missing)}; use one that all hosts share"
    return [Check("workdir", str(path), fault, must_match=True)]


def _fault(folder: epath.Path) -> str:
    fault = find_write_error(folder)
    return f"it is not writable ({fault})" if fault else ""
