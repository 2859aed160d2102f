"""What a host is like before a run is started on it, and how the hosts of a run differ."""

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
from mambaout_jax.data.buckets import within_seconds
from mambaout_jax.data.prepare import ensure_prepared
from mambaout_jax.run.errors import RunError
from mambaout_jax.run.files import fault_of_writing
from mambaout_jax.run.workdir import PACKAGES, open_workdir

COLLECTIVE_SECONDS = 60
# More than clocks that are kept by NTP differ, and than what the way of a message adds.
MAX_SKEW_SECONDS = 2.0
READ_SECONDS = 2.0
# Where the devices of a TPU's chips lie: until v4 the first, since v5e the second.
_TPU_FILES = ("/dev/accel0", "/dev/vfio/0")


class Check(NamedTuple):
    """Hold one line of a host.

    Args:
        name: of what was looked at.
        value: what was found, in words.
        fault: what is wrong and what to do; empty if nothing.
        alike: whether all hosts have to have the same value.
    """

    name: str
    value: str
    fault: str = ""
    alike: bool = False


class CheckResult(NamedTuple):
    """Hold a line for all hosts: the value that most have, and a fault for each that something is wrong with."""

    name: str
    value: str
    faults: tuple[str, ...]


def examine(data: tuple[str, str, str | None] | None, workdir: epath.PathLike | None) -> Iterator[CheckResult]:
    """Look at this host and the others, one thing after another; all hosts have to do it together.

    Args:
        data: name, split and folder of a prepared dataset; None not to look at any.
        workdir: None not to look at one.
    """
    looks: list[Callable[[], list[Check]]] = [_versions, _devices, _cache, _collective, _clock]
    if data is not None:
        looks.append(lambda: _data(*data))
    if workdir is not None:
        looks.append(lambda: _workdir(workdir))
    for look in looks:
        yield from _together(look)


def _together(look: Callable[[], list[Check]]) -> list[CheckResult]:
    words = distributed.allgather_strings("comparing what the hosts are like", json.dumps(look()))
    hosts = [[Check(*finding) for finding in json.loads(word)] for word in words]
    return [_compare(findings) for findings in zip(*hosts, strict=True)]


def _compare(findings: Sequence[Check]) -> CheckResult:
    """Join what the hosts found, and name those that are unlike most."""
    most = collections.Counter(finding.value for finding in findings).most_common(1)[0][0]
    faults = []
    for host, finding in enumerate(findings):
        where = f"process {host}: " if len(findings) > 1 else ""
        if finding.fault:
            faults.append(f"{where}{finding.fault}")
        elif finding.alike and finding.value != most:
            faults.append(f"{where}{finding.value} where most have {most}; make them equal")
    values = [finding.value for finding in findings]
    shown = most if findings[0].alike or len(set(values)) == 1 else ", ".join(values)
    return CheckResult(findings[0].name, shown, tuple(faults))


def _versions() -> list[Check]:
    versions = {"Python": platform.python_version()}
    for name in (*PACKAGES, "libtpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    versions.setdefault("libtpu", "none")
    return [Check(name, version, alike=True) for name, version in versions.items()]


def _devices() -> list[Check]:
    platform_name, kind = jax.default_backend(), jax.local_devices()[0].device_kind
    fault = ""
    if platform_name != "tpu" and any(map(os.path.exists, _TPU_FILES)):
        fault = f"this host has a TPU and JAX sees only {platform_name}; install jax[tpu], or end what else holds it"
    expected = len(os.environ.get("TPU_WORKER_HOSTNAMES", "").split(","))
    seen = jax.process_count()
    missing = "" if seen >= expected else f"{seen} of {expected} hosts take part; give --distributed on every host"
    return [
        Check("hosts", f"{seen} of {max(expected, seen)}", missing, alike=True),
        Check("chips of a host", f"{jax.local_device_count()} x {kind}", fault, alike=True),
        Check("chips", str(jax.device_count()), alike=True),
    ]


def _collective() -> list[Check]:
    """Add up ones over all devices, with a time limit."""

    def add_up() -> tuple[float, float]:
        mesh = distributed.make_mesh()
        ones = distributed.batch_sharding(mesh)
        total = jax.jit(jnp.sum, out_shardings=distributed.replicated(mesh))
        local = np.ones(jax.local_device_count(), np.float32)
        for _ in range(2):  # the first time it is compiled
            placed = jax.make_array_from_process_local_data(ones, local)
            started = time.perf_counter()
            value = float(total(placed))
        return value, time.perf_counter() - started

    try:
        value, seconds = within_seconds(COLLECTIVE_SECONDS, add_up)
    except TimeoutError:
        fault = f"a sum over all devices did not come back in {COLLECTIVE_SECONDS} s; look at the network between hosts"
        return [Check("collective", "none", fault)]
    right = value == jax.device_count()
    fault = "" if right else f"a sum of ones over {jax.device_count()} devices gave {value:g}"
    return [Check("collective", f"{1e3 * seconds:.1f} ms", fault)]


def _clock() -> list[Check]:
    distributed.allgather_strings("setting out to compare clocks")
    times = [float(word) for word in distributed.allgather_strings("comparing clocks", repr(time.time()))]
    skew = times[jax.process_index()] - sorted(times)[len(times) // 2]
    fault = "" if abs(skew) < MAX_SKEW_SECONDS else f"its clock is {skew:+.1f} s from the others'; keep it by NTP"
    return [Check("clock", f"{skew:+.2f} s", fault)]


def _cache() -> list[Check]:
    place = jax.config.jax_compilation_cache_dir
    if place is None:
        return [Check("compilation cache", "none; JAX_COMPILATION_CACHE_DIR names one", alike=True)]
    if fault := _fault(epath.Path(place)):
        jax.config.update("jax_enable_compilation_cache", False)  # what is looked at next would wait for it
    return [Check("compilation cache", place, fault, alike=True)]


def _data(name: str, split: str, data_dir: str | None) -> list[Check]:
    try:
        ensure_prepared(name, data_dir)
        source = open_records(name, split, data_dir)
        count, size, started = 0, 0, time.perf_counter()
        # From all over the split, as training reads: a stride that has no factor in common with most lengths.
        while count < len(source) and time.perf_counter() - started < READ_SECONDS:
            size += sum(feature.ByteSize() for feature in source[count * 7919 % len(source)].values())
            count += 1
        seconds = time.perf_counter() - started
    except (DataError, OSError) as error:
        return [Check("data", "none", str(error)), Check("reading", "none")]
    return [
        Check("data", f"{len(source):,} records of {source.name}", alike=True),
        Check("reading", f"{count / seconds:,.0f} records/s, {size / seconds / 2**20:.1f} MiB/s"),
    ]


def _workdir(path: epath.PathLike) -> list[Check]:
    try:
        workdir = open_workdir(path)
        fault = _fault(workdir)
    except RunError as error:
        fault = str(error)
    # All hosts look whether they see the same folder, or none does: they have to meet for it.
    faults = distributed.allgather_strings("trying to write into the workdir", fault)
    if not any(faults) and (blind := distributed.check_shared_filesystem(workdir)):
        fault = f"it is not the same folder on process {', '.join(map(str, blind))}; name one that all hosts share"
    return [Check("workdir", str(path), fault, alike=True)]


def _fault(folder: epath.Path) -> str:
    fault = fault_of_writing(folder)
    return f"it cannot be written ({fault})" if fault else ""
