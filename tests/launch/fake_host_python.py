"""A fake Python for a host's .venv: main.py ends as $FAKE_CLOUD/runs.json specifies, one entry per start.

An entry is [steps that it trains, [exit code of host 0, of host 1]]; the code "hang" waits for a
signal, and then saves.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

CLOUD = Path(os.environ["FAKE_CLOUD"])
HOST = Path(os.environ["HOME"]).name
STEPS = CLOUD / "newest_step"  # the bucket


def save_and_end(*_):
    print("saved", flush=True)
    sys.exit(75)


if sys.argv[1] == "-c":
    print("Python 3.12.0, jax of the tests")
elif sys.argv[1] == "-":
    print("mambaout-step", STEPS.read_text() if STEPS.exists() else -1)
else:
    starts = CLOUD / f"starts-{HOST}"
    start = int(starts.read_text()) if starts.exists() else 0
    starts.write_text(str(start + 1))
    words = [os.environ.get("JAX_COMPILATION_CACHE_DIR", ""), *sys.argv[1:]]
    (CLOUD / f"command-{HOST}-{start}.json").write_text(json.dumps(words))
    steps, codes = json.loads((CLOUD / "runs.json").read_text())[start]
    signal.signal(signal.SIGTERM, save_and_end)
    print(f"start {start} trains to step {steps}", flush=True)
    if HOST == "0" and steps:
        STEPS.write_text(str(steps))
    while codes[int(HOST)] == "hang":
        time.sleep(0.02)
    sys.exit(codes[int(HOST)])
