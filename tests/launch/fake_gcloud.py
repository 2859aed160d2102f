"""A fake gcloud driven by a script: two hosts that are folders, in which ssh runs commands, and a log of all calls.

$FAKE_CLOUD/script.json says what happens: "boots", for each creation the states before ACTIVE; "create", the errors of
creations ("" for none); "delete", those of deletions; "describe", those of each look at the state; "start", "running"
and "follow", what befalls each of these commands ("", "preempt", "killed" on host 0, "unreachable", "unready", or "cut"
after it ran).
"""

import contextlib
import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

CLOUD = Path(os.environ["FAKE_CLOUD"])
NUM_HOSTS = 2
ERROR = "ERROR: (gcloud.{}) {}"
QUOTA = (
    "RESOURCE_EXHAUSTED: Quota limit 'TPUV5sLitepodPerProjectPerZoneForTPUAPI' has been exceeded. Limit: 8 in zone z."
)


def main(words):
    """Answer one call; return the exit code."""
    script = json.loads((CLOUD / "script.json").read_text())
    with open(CLOUD / "calls.txt", "a") as calls:
        calls.write(shlex.join(words) + "\n")
    flags = {word.split("=", 1)[0]: word.partition("=")[2] for word in words if word.startswith("--")}
    code = answer(script, [word for word in words if not word.startswith("--")], flags)
    (CLOUD / "script.json").write_text(json.dumps(script))
    return code


def answer(script, words, flags):
    group, verb = " ".join(words[1:3]), words[3] if len(words) > 3 else ""
    main_resource = group in ("tpus queued-resources", "instance-groups managed", "instances describe")
    main_resource = main_resource or words[1] == "instances"
    if words[1] in ("ssh", "scp"):
        return on_host(script, words[1], words[2:], flags)
    if ("describe" in words or verb == "list-instances") and (error := pop(script, "describe", "")):
        return complain(words, error)
    if group == "tpus tpu-vm":
        if verb == "describe":
            print("PREEMPTED" if script.get("gone") else "READY")
            return 0
        return on_host(script, verb, words[4:], flags)
    if not main_resource:
        return 0  # resources of an instance group
    verb = words[2] if words[1] == "instances" else verb
    if verb == "create":
        if error := pop(script, "create", ""):
            return complain(words, error)
        script.update(exists=True, gone=False, pending=pop(script, "boots", []))
        for host in hosts():
            shutil.rmtree(host, ignore_errors=True)
            host.mkdir(parents=True)
        return 0
    if not script.get("exists"):
        return complain(words, "NOT_FOUND: Resource was not found")
    if verb == "delete":
        end_processes()
        if error := pop(script, "delete", ""):
            return complain(words, error)
        script["exists"] = False
        return 0
    if "error" in flags.get("--format", "") or verb == "list-errors":
        print(script.get("error", ""))
        return 0
    state = "SUSPENDED" if script.get("gone") else pop(script, "pending", "ACTIVE")
    if group == "tpus queued-resources":
        print(state)
    else:
        state = {"ACTIVE": "RUNNING", "SUSPENDED": "TERMINATED"}.get(state, state)
        lines = [state] if words[1] == "instances" else [f"host{host}\t{state}" for host in range(NUM_HOSTS)]
        print("\n".join(lines))
    return 0


def on_host(script, verb, words, flags):
    """Run a command in the folders of hosts, or copy a file there."""
    asked = re.search(r"on_host\.sh (start|running|follow)", flags.get("--command", ""))
    event = pop(script, asked[1], "") if asked else ""
    if event == "preempt":
        end_processes()
        script["gone"] = True
    if event == "killed":
        kill(hosts()[0] / "mambaout/run.pid", keeper=True)
    if event == "unready":
        return complain(["ssh"], "Cloud TPU is not in READY state")
    if event == "unreachable":
        text = "ssh: connect to host 192.0.2.1 port 22: Connection timed out\n"
        for number in range(NUM_HOSTS) if "--output-directory" in flags else ():
            Path(flags["--output-directory"], f"{number}.log").write_text(text)
        sys.stderr.write(text)
        return 255
    if script.get("gone"):
        return complain(["ssh"], "the TPU is in state PREEMPTED")
    chosen = hosts()
    if "--worker" not in flags:
        target = words[0 if verb == "ssh" else 1]
        chosen = [chosen[int(target.rstrip(":").removeprefix("host"))] if target.startswith("host") else chosen[0]]
    elif flags["--worker"] != "all":
        chosen = [chosen[int(flags["--worker"])]]
    if verb == "scp":
        for host in chosen:
            shutil.copy(words[0], host)
        return 0
    code = 0
    for host in chosen:
        result = subprocess.run(
            ["bash", "-c", flags["--command"]],
            check=False,
            cwd=host,
            env={**os.environ, "HOME": str(host)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        code = code or result.returncode
        if "--output-directory" in flags:
            Path(flags["--output-directory"], f"{host.name}.log").write_text(result.stdout)
        else:
            print(result.stdout, end="")
    return 255 if event == "cut" else code


def hosts():
    return [CLOUD / "hosts" / str(number) for number in range(NUM_HOSTS)]


def end_processes():
    for path in CLOUD.glob("hosts/*/mambaout/run.pid"):
        kill(path)


def kill(path, keeper=False):
    """Kill the run of a host and, on demand, first the process that would write its exit code."""
    run, *others = path.read_text().split()[:2] or [""]
    for pid in (*others[: int(keeper)], run):
        with contextlib.suppress(ProcessLookupError, ValueError):
            os.kill(int(pid), signal.SIGKILL)


def pop(script, key, default):
    return script[key].pop(0) if script.get(key) else default


def complain(words, text):
    print(ERROR.format(".".join(words[:4]), QUOTA if text == "quota" else text), file=sys.stderr)
    return 1


if __name__ == "__main__":
    with open(CLOUD / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the launcher for groups calls all hosts in parallel
        sys.exit(main(sys.argv[1:]))
