"""Communication between the processes of a run: initialization, barriers, named allgathers, and coordinated stops.

Uses the coordination service of `jax.distributed` in process 0. All processes make the same calls in the same order, so
that the n-th call with a name matches the n-th call with that name in every other process.
"""

import collections
import contextlib
import itertools
import json
import os
import pickle
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax._src import distributed  # JAX has no public API for its key-value store
from jax.experimental import multihost_utils

from mambaout_jax.distributed.errors import DistributedError, LostProcessError
from mambaout_jax.words import listed, processes

# With JAX's default of 100 s, the surviving processes would wait that long after the loss of one.
HEARTBEAT_SECONDS = 30
JOINING_SECONDS = 300
BARRIER_SECONDS = 600
_POLL_SECONDS = 0.2
_FAILURE_SECONDS = 5
_SERVICE_SECONDS = 2  # process 0 exits this much later, because the loss of its service aborts the others

_calls: dict[str, "itertools.count[int]"] = collections.defaultdict(itertools.count)


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    seconds: int = JOINING_SECONDS,
) -> None:
    """Join the other processes; on a TPU or a cluster all three arguments may come from the environment.

    Args:
        coordinator: "host:port" of process 0.
        seconds: timeout for all processes to join. After that, or if a process is lost later, JAX aborts this process.

    Raises:
        DistributedError: an argument is missing or invalid, or the port is not available to process 0.
    """
    given = {"coordinator": coordinator, "num-processes": num_processes, "process-id": process_id}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise DistributedError(f"missing {listed(missing)}; set all three options, or none on a TPU")
    if not missing:
        _check_address(coordinator, num_processes, process_id)
    # gRPC would connect the hosts through grpc_proxy or http_proxy, where joining hangs. An empty value disables both.
    os.environ.update(grpc_proxy="")
    # The service would handle SIGTERM itself.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=seconds,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        raise DistributedError(
            f"the other processes cannot be found ({str(error).strip().splitlines()[0]}); outside of a TPU, set "
            "--coordinator=HOST:PORT --num-processes=N --process-id=I"
        ) from error


def _check_address(coordinator: str, num_processes: int, process_id: int) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise DistributedError(f"--coordinator is {coordinator!r}; expected HOST:PORT of process 0")
    if num_processes < 1:
        raise DistributedError(f"--num-processes is {num_processes}; expected at least 1")
    if not 0 <= process_id < num_processes:
        raise DistributedError(
            f"--process-id is {process_id}; expected 0 to {num_processes - 1} with --num-processes={num_processes}"
        )
    if process_id == 0:
        with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", int(port)))
            except OSError as error:
                raise DistributedError(
                    f"port {port} of --coordinator is not available ({error.strerror}); choose another one for all "
                    "processes"
                ) from error


def is_multi_process() -> bool:
    """Return whether this process has joined others, without initializing devices."""
    return distributed.global_state.client is not None and distributed.global_state.num_processes > 1


def is_first() -> bool:
    """Return whether this is process 0, which writes logs and reports."""
    return jax.process_index() == 0


def barrier(name: str, seconds: float = BARRIER_SECONDS) -> None:
    """Wait until all processes have made this call.

    Args:
        name: name for the error message.

    Raises:
        LostProcessError: a process did not arrive in time.
    """
    allgather_strings(name, "", seconds)


def allgather_strings(name: str, value: str, seconds: float = BARRIER_SECONDS) -> list[str]:
    """Wait for all processes and return the value of each, by process index.

    Args:
        name: name for the error message.

    Raises:
        LostProcessError: a process did not arrive in time.
    """
    if jax.process_count() == 1:
        return [value]
    client = distributed.global_state.client
    prefix = f"mambaout_jax/{name}/{next(_calls[name])}/"
    client.key_value_set(f"{prefix}{jax.process_index()}", f"={value}")  # empty values are rejected
    deadline = time.monotonic() + seconds
    values = []
    for process in range(jax.process_count()):
        left = max(deadline - time.monotonic(), 0.001)
        try:
            values.append(client.blocking_key_value_get(f"{prefix}{process}", int(1000 * left) or 1).removeprefix("="))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
            present = {int(key.rpartition("/")[2]) for key, _ in client.key_value_dir_get(prefix)}
            absent = sorted(set(range(jax.process_count())) - present)
            raise LostProcessError(
                f"{name}: {processes(absent)} of {jax.process_count()} did not arrive within {seconds:g} s"
            ) from error
    return values


def allgather_objects(value: Any) -> list[Any]:
    """Return the value of each process, by process index, exchanged as pickles through the devices.

    Each device temporarily stores the pickles of all processes, padded to the largest, which must be below 2 GiB.
    """
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(data.size))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: data.size] = data
    gathered = multihost_utils.process_allgather(padded)
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(gathered, sizes.tolist(), strict=True)]


def check_shared_filesystem(folder: epath.Path) -> list[int]:
    """Return the processes that do not see a file written to the folder by process 0."""
    if jax.process_count() == 1:
        return []
    probe = folder / ".shared"
    if is_first():
        probe.write_text(secrets.token_hex())
    token = allgather_strings("sharing a folder", probe.read_text() if is_first() else "")[0]
    sees = probe.exists() and probe.read_text() == token
    seen = allgather_strings("checking a shared folder", "yes" if sees else "")
    if is_first():
        probe.unlink()
    return [process for process, value in enumerate(seen) if not value]


def assert_same_on_all_hosts(values: Mapping[str, str]) -> None:
    """Compare named values of this process with those of process 0.

    Raises:
        DistributedError: values differ; the message lists all differences of all processes.
    """
    gathered = [json.loads(text) for text in allgather_strings("comparing processes", json.dumps(dict(values)))]
    first = gathered[0]
    faults = [
        f"process {process} has {name} {theirs.get(name)!r} where process 0 has {first.get(name)!r}"
        for process, theirs in enumerate(gathered)
        for name in {**first, **theirs}
        if theirs.get(name) != first.get(name)
    ]
    if faults:
        raise DistributedError(f"the processes differ: {'; '.join(faults)}; use the same on all hosts")


def shutdown() -> None:
    """Disconnect from the other processes before this one exits; all processes call it together."""
    if jax.process_count() > 1:
        jax.distributed.shutdown()


def shutdown_after_local_failure() -> None:
    """Disconnect after a failure of this process, without waiting for processes that are waiting for this one.

    The others get a few seconds to fail as well and to print their errors.
    """
    _leave("failed", _FAILURE_SECONDS)


def shutdown_after_remote_failure() -> bool:
    """Disconnect after communication failed, and return whether another process reported a failure.

    A killed process reports nothing; JAX aborts this process once the heartbeat of the killed one is missed.
    """
    return "failed" in _leave("", HEARTBEAT_SECONDS + 10)


def _leave(status: str, seconds: float) -> list[str]:
    statuses = []
    with contextlib.suppress(RuntimeError):  # other processes are lost, too, or this one has no devices
        statuses = allgather_strings("shutting down after a failure", status, seconds)
        if is_first():
            time.sleep(_SERVICE_SECONDS)
    return statuses


class StopCoordinator:
    """An agreement between all processes on the number of collective operations after which they stop.

    A stop request in one process reaches all of them. Each then publishes its count from a thread, because its main
    thread may be waiting for the others. All continue up to the largest count, because some process has already started
    that operation.

    Raises:
        LostProcessError: the processes cannot agree; from `should_continue` and `finished`.
    """

    def __init__(self) -> None:
        self.reason = ""
        self._count = 0
        self._lock = threading.Lock()
        self._published = False  # if True, this process waits until all have published their counts
        self._last = 0
        self._failure: Exception | None = None
        self._decided = threading.Event()
        self._closed = threading.Event()
        self._prefix = f"mambaout_jax/stop/{next(_calls['stop'])}/"
        if jax.process_count() > 1:
            threading.Thread(target=self._watch, daemon=True).start()

    def request_stop(self, reason: str) -> None:
        """Request that all processes stop; safe in a signal handler."""
        self.reason = self.reason or reason
        if jax.process_count() == 1:
            self._last = self._count
            self._decided.set()

    def should_continue(self) -> bool:
        """Return whether to start another collective operation, and count it."""
        with self._lock:
            if not self._published and not self._decided.is_set():
                self._count += 1
                return True
        self._decided.wait()
        if self.finished():
            return False
        self._count += 1
        return True

    def finished(self) -> bool:
        """Return whether a stop was requested and all operations before it have started."""
        if self._failure:
            raise self._failure
        return self._decided.is_set() and self._count >= self._last

    def close(self) -> None:
        """Stop the thread."""
        self._closed.set()

    def _watch(self) -> None:
        try:
            if self._wait_for_request():
                with self._lock:
                    self._published = True
                self._last = max(map(int, allgather_strings("stopping together", str(self._count))))
                self._decided.set()
        except Exception as error:  # re-raised in the main thread
            if not isinstance(error, LostProcessError):
                reason = str(error).splitlines()[0]
                error = LostProcessError(f"the processes could not agree on a step to stop at ({reason})")
            self._failure = error
            self._decided.set()

    def _wait_for_request(self) -> bool:
        client, key = distributed.global_state.client, f"{self._prefix}request"
        while not self._closed.wait(_POLL_SECONDS):
            if self.reason:
                client.key_value_set(key, f"{self.reason} of process {jax.process_index()}", allow_overwrite=True)
            if requests := client.key_value_dir_get(self._prefix):
                self.reason = requests[0][1]
                return True
        return False
