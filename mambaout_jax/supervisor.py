"""A parent process that maps the abort of a distributed JAX process to a message and an exit code.

If a process of a distributed run dies, JAX aborts the others from C++, so that Python code in them can neither print
the reason nor choose the exit code. Their parent processes can.
"""

import collections
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

from mambaout_jax.process import SignalHandlers, exit_with_parent, stop_signals
from mambaout_jax.words import processes

MARK = "MAMBAOUT_JAX_SUPERVISOR"
# Abort messages of JAX (jaxlib 0.10 to 0.12); the task numbers follow on separate lines.
_UNHEALTHY = re.compile(r"tasks are unhealthy[^\n]*\n((?:\d+\n)+)")
_UNREACHABLE = "Failed to send RPC to coordination service"
_JOINED_TWICE = "different incarnation"
_NOT_JOINED = "CoordinationService/RegisterTask"


def is_supervised() -> bool:
    """Return whether this process was started by `supervise`."""
    return MARK in os.environ


def exit_with_supervisor() -> None:
    """Start a thread that exits this supervised process when its supervisor exits.

    Until a run installs its handlers, SIGINT kills the process immediately, because Python would defer it while the
    process waits for others.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    exit_with_parent(int(os.environ[MARK]), os.EX_TEMPFAIL)


def supervise(command: Sequence[str]) -> int:
    """Run a command as a child process, forward signals to it, and return the exit code for a launcher.

    The exit code is that of the child, or 75 ("restart") if it was ended by a signal or the loss of another process. A
    second signal kills the child.
    """
    tail: collections.deque[str] = collections.deque(maxlen=1000)
    child = subprocess.Popen(
        [sys.executable, *command], env={**os.environ, MARK: str(os.getpid())}, stderr=subprocess.PIPE, text=True,
        errors="replace", process_group=0,
    )  # fmt: skip
    received: list[int] = []

    def forward(number: int, _: FrameType | None) -> None:
        child.send_signal(signal.SIGKILL if received else number)
        received.append(number)

    SignalHandlers(stop_signals(), forward).install()
    for line in child.stderr:
        tail.append(line)
        with contextlib.suppress(OSError):  # a full disk or a closed pipe must not stop a run
            print(line, end="", file=sys.stderr, flush=True)
    code = child.wait()
    if code >= 0:
        return code
    with contextlib.suppress(OSError):
        print(f"error: {_explain(''.join(tail), code)}; rerun the same command to resume", file=sys.stderr)
    return os.EX_TEMPFAIL


def _explain(text: str, code: int) -> str:
    if lost := _UNHEALTHY.search(text):
        return f"lost {processes(lost[1].split())}: no heartbeat"
    if _NOT_JOINED in text:
        return "not all processes joined in time; check --coordinator, --num-processes and the missing hosts"
    if _JOINED_TWICE in text:
        return "a process joined twice: two have the same --process-id, or one was restarted before the others exited"
    if _UNREACHABLE in text:
        return "lost process 0: unreachable"
    return f"the process was terminated by {signal.Signals(-code).name}"
