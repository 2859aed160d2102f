"""Where the numbers of a run go: the console, metrics.jsonl and TensorBoard."""

import json
import math
import sys
import time
from typing import Any

from etils import epath
from tensorboardX import SummaryWriter
from tqdm import tqdm


class MetricWriter:
    """Append records to metrics.jsonl and their scalars to TensorBoard, and show them on the console.

    On a terminal a bar shows where the run is; elsewhere every record is a line.
    """

    def __init__(self, workdir: epath.Path, *, num_steps: int, first_step: int, steps_per_epoch: int):
        self._file = (workdir / "metrics.jsonl").open("a")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step)
        self._steps_per_epoch = steps_per_epoch
        self._num_epochs = math.ceil(num_steps / steps_per_epoch)
        self._bar = tqdm(
            total=num_steps,
            initial=first_step,
            unit="step",
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {postfix}",
        )
        self._num_steps = num_steps
        self._clock = (time.monotonic(), first_step)

    def advance(self) -> None:
        """Move the bar by one step."""
        self._bar.update()

    def say(self, text: str) -> None:
        """Print a line without breaking the bar."""
        tqdm.write(text, file=sys.stderr)

    def train(self, record: dict[str, Any]) -> None:
        """Write what was measured over the last steps."""
        self._append({"kind": "train", **record})
        started, first_step = self._clock
        done = record["step"] - first_step
        left = (time.monotonic() - started) / max(done, 1) * (self._num_steps - record["step"])
        text = (
            f"loss {record['loss']:.4f}, {record['images_per_second']:.0f} images/s, "
            f"{100 * record['input_wait']:.0f} % waiting for data, {_clock(left)} left"
        )
        self._bar.set_description_str(f"epoch {record['epoch']:.1f}/{self._num_epochs}", refresh=False)
        self._bar.set_postfix_str(text, refresh=False)
        if self._bar.disable:
            self.say(f"step {record['step']}/{self._num_steps}, epoch {record['epoch']:.1f}, {text}")

    def evaluation(self, record: dict[str, Any]) -> None:
        """Write the scores of one evaluation."""
        self._append({"kind": "eval", **record})
        scores = ", ".join(
            f"{name} top-1 {record[name]['top1']:.2f} % top-5 {record[name]['top5']:.2f} %"
            for name in ("raw", "ema")
            if name in record
        )
        self.say(f"step {record['step']}, epoch {record['epoch']:.1f}: {scores}")

    def close(self) -> None:
        """Flush everything."""
        self._bar.close()
        self._board.close()
        self._file.close()

    def _append(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for name, value in _scalars(record):
            self._board.add_scalar(f"{record['kind']}/{name}", value, record["step"])
        self._board.flush()


def _scalars(record: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    pairs = []
    for name, value in record.items():
        if isinstance(value, dict):
            pairs += _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "step":
            pairs.append((prefix + name, value))
    return pairs


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
