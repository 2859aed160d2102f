"""Watch over a process of a run of many, and say what happened if another one takes it along.

Where a process of a distributed run dies, JAX aborts the others from C++, where no Python can tell why or choose the
exit code. Their parents can.
"""

import collections
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType

MARK = "MAMBAOUT_JAX_SUPERVISOR"
# What JAX prints as it aborts (jaxlib 0.10 to 0.12), with the numbers of the tasks on lines of their own.
_UNHEALTHY = re.compile(r"tasks are unhealthy[^\n]*\n((?:\d+\n)+)")
_UNREACHABLE = "Failed to send RPC to coordination service"
_TWICE = "different incarnation"
_NOT_COMPLETE = "CoordinationService/RegisterTask"


def is_supervised() -> bool:
    """Tell whether this process was started by `supervise`; if so, see that it ends with its parent.

    Until a run listens to signals they end it at once: Python would keep them while it waits for other processes.
    """
    parent = os.environ.get(MARK)
    if parent is None:
        return False
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()
    return True


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(os.EX_TEMPFAIL)


def supervise(command: Sequence[str]) -> int:
    """Run a command as a child process that signals are handed on to, and give the exit code for a launcher.

    That is the child's own, or 75, which means "start again", if a signal or the loss of another process ended it.
    A second signal ends the child at once.
    """
    tail: collections.deque[str] = collections.deque(maxlen=1000)
    child = subprocess.Popen(
        [sys.executable, *command], env={**os.environ, MARK: str(os.getpid())}, stderr=subprocess.PIPE, text=True,
        errors="replace", process_group=0,
    )  # fmt: skip
    received: list[int] = []

    def hand_on(number: int, _: FrameType | None) -> None:
        child.send_signal(signal.SIGKILL if received else number)
        received.append(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, hand_on)
    for line in child.stderr:
        tail.append(line)
        with contextlib.suppress(OSError):  # a full disk or a reader that went away is no reason to end a run
            print(line, end="", file=sys.stderr, flush=True)
    code = child.wait()
    if code >= 0:
        return code
    with contextlib.suppress(OSError):
        print(f"error: {_explain(''.join(tail), code)}; the same command goes on", file=sys.stderr)
    return os.EX_TEMPFAIL


def _explain(text: str, code: int) -> str:
    if lost := _UNHEALTHY.search(text):
        return f"process {', '.join(lost[1].split())} was lost, and its heartbeat with it"
    if _NOT_COMPLETE in text:
        return "not all processes came in time; look at --coordinator, --num_processes and the hosts that are missing"
    if _TWICE in text:
        return "a process joined twice: --process_id is given to two, or one was started again before the others ended"
    if _UNREACHABLE in text:
        return "process 0 was lost, or cannot be reached any more"
    return f"the process was ended by {signal.Signals(-code).name}"
