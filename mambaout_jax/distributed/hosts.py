"""How the processes of a run find each other, meet, and agree.

They talk through the coordination service that process 0 runs for `jax.distributed`. Each does the same things in the
same order, so that the n-th use of a name is the same meeting for all.
"""

import collections
import contextlib
import itertools
import json
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
from jax._src import distributed  # JAX has no public door to its key-value store
from jax.experimental import multihost_utils

from mambaout_jax.distributed.errors import LostProcessError, ParallelError

# Jax's own default, 100 s, would keep the survivors waiting longer than a minute.
HEARTBEAT_SECONDS = 30
JOINING_SECONDS = 300
MEETING_SECONDS = 600
_POLL_SECONDS = 0.2
_FAILING_SECONDS = 5
_LAST_SECONDS = 2  # that process 0 leaves after the others, whom the loss of its service would abort

_meetings: dict[str, "itertools.count[int]"] = collections.defaultdict(itertools.count)


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    seconds: int = JOINING_SECONDS,
) -> None:
    """Join the other processes; all three arguments may be left to the environment of a TPU or a cluster.

    Args:
        coordinator: "host:port" of process 0.
        seconds: to wait for all of them. After that, as when a process is lost later on, the program is aborted.

    Raises:
        ParallelError: an argument is missing or does not fit, or process 0 cannot have the port.
    """
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise ParallelError(f"{' and '.join(missing)} is missing; give all three of them, or none on a TPU's hosts")
    if not missing:
        _check_place(coordinator, num_processes, process_id)
    # It would take SIGTERM for itself.
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
        raise ParallelError(
            f"the other processes cannot be found ({str(error).strip().splitlines()[0]}); where no TPU tells, name "
            "them by --coordinator=HOST:PORT --num_processes=N --process_id=I"
        ) from error


def _check_place(coordinator: str, num_processes: int, process_id: int) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ParallelError(f"--coordinator is {coordinator!r}; HOST:PORT of process 0 is expected")
    if num_processes < 1:
        raise ParallelError(f"--num_processes is {num_processes}; at least 1 is expected")
    if not 0 <= process_id < num_processes:
        raise ParallelError(
            f"--process_id is {process_id} of --num_processes {num_processes}; 0 to {num_processes - 1} are expected"
        )
    if process_id == 0:
        with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", int(port)))
            except OSError as error:
                raise ParallelError(
                    f"port {port} of --coordinator cannot be had ({error.strerror}); name another, to all processes"
                ) from error


def is_multi_process() -> bool:
    """Tell whether there are other processes that this one has joined, though it may have found no device."""
    return distributed.global_state.client is not None and distributed.global_state.num_processes > 1


def is_first() -> bool:
    """Tell whether this is the process that writes logs and reports."""
    return jax.process_index() == 0


def allgather_strings(name: str, word: str = "", seconds: float = MEETING_SECONDS) -> list[str]:
    """Wait for all processes, and give the word of each, by its index.

    Args:
        name: of the meeting, for the sentence that says who is missing.

    Raises:
        LostProcessError: a process did not come in time.
    """
    if jax.process_count() == 1:
        return [word]
    client = distributed.global_state.client
    place = f"mambaout_jax/{name}/{next(_meetings[name])}/"
    client.key_value_set(f"{place}{jax.process_index()}", f"={word}")  # a value of no length is refused
    deadline = time.monotonic() + seconds
    words = []
    for process in range(jax.process_count()):
        left = max(deadline - time.monotonic(), 0.001)
        try:
            words.append(client.blocking_key_value_get(f"{place}{process}", int(1000 * left) or 1).removeprefix("="))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
            came = {int(key.rpartition("/")[2]) for key, _ in client.key_value_dir_get(place)}
            absent = sorted(set(range(jax.process_count())) - came)
            raise LostProcessError(
                f"{name}: process {', '.join(map(str, absent))} of {jax.process_count()} did not come in {seconds:g} s"
            ) from error
    return words


def allgather_objects(value: Any) -> list[Any]:
    """Return the value of each process, by its index. Values of any size are sent as pickles over the devices."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(data.size))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: data.size] = data
    gathered = multihost_utils.process_allgather(padded)
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(gathered, sizes.tolist(), strict=True)]


def check_shared_filesystem(folder: epath.Path) -> list[int]:
    """Give the processes that do not see in a folder what process 0 writes there."""
    if jax.process_count() == 1:
        return []
    probe = folder / ".shared"
    if is_first():
        probe.write_text(secrets.token_hex())
    token = allgather_strings("sharing a folder", probe.read_text() if is_first() else "")[0]
    sees = probe.exists() and probe.read_text() == token
    words = allgather_strings("looking at a folder", "sees" if sees else "")
    if is_first():
        probe.unlink()
    return [process for process, word in enumerate(words) if not word]


def assert_same_on_all_hosts(facts: Mapping[str, str]) -> None:
    """Hold what this process runs against what process 0 runs.

    Raises:
        ParallelError: processes differ; all are named, and in what.
    """
    all_facts = [json.loads(word) for word in allgather_strings("comparing what is run", json.dumps(dict(facts)))]
    first = all_facts[0]
    faults = [
        f"process {process} has {name} {theirs.get(name)!r} where process 0 has {first[name]!r}"
        for process, theirs in enumerate(all_facts)
        for name in first
        if theirs.get(name) != first[name]
    ]
    if faults:
        raise ParallelError(f"the processes do not run the same: {'; '.join(faults)}; make them equal")


def shutdown() -> None:
    """Part from the other processes, all together, before this one exits."""
    if jax.process_count() > 1:
        jax.distributed.shutdown()


def shutdown_after_local_failure() -> None:
    """Part from the others after a failure of this process, without waiting for those that wait for it.

    They get a moment to fail likewise, and say why.
    """
    _part("failed", _FAILING_SECONDS)


def shutdown_after_remote_failure() -> bool:
    """Part from the others after a message failed, and tell whether a failure of another process was why.

    Of one that was killed nothing is heard, until its heartbeat is missed and this process aborted with that for a
    reason.
    """
    return "failed" in _part("", HEARTBEAT_SECONDS + 10)


def _part(word: str, seconds: float) -> list[str]:
    words = []
    with contextlib.suppress(RuntimeError):  # the others are lost as well, or this one has no devices
        words = allgather_strings("failing", word, seconds)
        if is_first():
            time.sleep(_LAST_SECONDS)
    return words


class StopCoordinator:
    """Count what all processes do together, and let them stop after the same count.

    A process that is asked to stop asks all. Each tells how far it has come, from a thread, because its main thread
    may be waiting for the others; all go on to the furthest count, which some process may be in the middle of.

    Raises:
        LostProcessError: the processes cannot agree; from `go_on` and `over`.
    """

    def __init__(self) -> None:
        self.reason = ""
        self._count = 0
        self._lock = threading.Lock()
        self._told = False  # how far this process has come; then it must not go on before all have told
        self._last = 0
        self._failure: Exception | None = None
        self._decided = threading.Event()
        self._closed = threading.Event()
        self._place = f"mambaout_jax/stop/{next(_meetings['stop'])}/"
        if jax.process_count() > 1:
            threading.Thread(target=self._watch, daemon=True).start()

    def stop(self, reason: str) -> None:
        """Ask all processes to stop; safe in a signal handler."""
        self.reason = self.reason or reason
        if jax.process_count() == 1:
            self._last = self._count
            self._decided.set()

    def go_on(self) -> bool:
        """Count what comes next, or tell that it is not to be done any more."""
        with self._lock:
            if not self._told and not self._decided.is_set():
                self._count += 1
                return True
        self._decided.wait()
        if self.over():
            return False
        self._count += 1
        return True

    def over(self) -> bool:
        """Tell whether everything that was to be done before the stop is done."""
        if self._failure:
            raise self._failure
        return self._decided.is_set() and self._count >= self._last

    def close(self) -> None:
        """Let go of the thread."""
        self._closed.set()

    def _watch(self) -> None:
        try:
            if self._wait_until_asked():
                with self._lock:
                    self._told = True
                self._last = max(map(int, allgather_strings("stopping together", str(self._count))))
                self._decided.set()
        except Exception as error:  # raised where the main thread waits
            known = isinstance(error, LostProcessError)
            self._failure = error if known else LostProcessError(f"agreeing to stop: {str(error).splitlines()[0]}")
            self._decided.set()

    def _wait_until_asked(self) -> bool:
        client, asked = distributed.global_state.client, f"{self._place}asked"
        while not self._closed.wait(_POLL_SECONDS):
            if self.reason:
                client.key_value_set(asked, f"{self.reason} of process {jax.process_index()}", allow_overwrite=True)
            if words := client.key_value_dir_get(self._place):
                self.reason = words[0][1]
                return True
        return False
