"""Where the numbers of a run come from and go to: the console, metrics.jsonl and TensorBoard."""

import json
import math
import sys
import time
from collections.abc import Iterable, Iterator
from typing import IO, Any

import jax
from etils import epath
from tqdm import tqdm

from mambaout_jax.run.errors import DivergedError
from mambaout_jax.run.logs import LogFolder
from mambaout_jax.run.state import Progress

# Above this share of its time the step visibly waits for the host.
INPUT_BOUND = 0.05


class MetricWriter:
    """Append records to metrics.jsonl and their scalars to TensorBoard, and show them on the console.

    On a terminal a bar shows where the run is; elsewhere every record is a line.
    """

    def __init__(self, workdir: epath.Path, *, num_steps: int, first_step: int, steps_per_epoch: int):
        from tensorboardX import SummaryWriter  # brings PyTorch along where that is installed: a second and 200 MB

        self._logs = LogFolder(workdir, "metrics.jsonl")
        self._file = _open_whole_lines(self._logs.path / "metrics.jsonl")
        self._board = SummaryWriter(str(self._logs.path / "tensorboard"), purge_step=first_step + 1)
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
        self._clock: tuple[float, int] | None = None  # from the first record on: before it lies the compilation

    def advance(self) -> None:
        """Move the bar by one step."""
        self._bar.update()

    def say(self, text: str) -> None:
        """Print a line without breaking the bar."""
        tqdm.write(text, file=sys.stderr)

    def train(self, record: dict[str, Any]) -> None:
        """Write what was measured over the last steps."""
        self._append({"kind": "train", **record})
        left = ""
        if self._clock is None:
            self._clock = time.monotonic(), record["step"]
        else:
            started, first_step = self._clock
            pace = (time.monotonic() - started) / max(record["step"] - first_step, 1)
            left = f", {_clock(pace * (self._num_steps - record['step']))} left"
        bound = " (input bound)" if record["input_wait"] > INPUT_BOUND else ""
        text = (
            f"loss {record['loss']:.4f}, {record['images_per_second']:.0f} images/s, "
            f"{100 * record['input_wait']:.0f} % waiting for data{bound}{left}"
        )
        self._bar.set_description_str(f"epoch {record['epoch']:.1f}/{self._num_epochs}", refresh=False)
        self._bar.set_postfix_str(text, refresh=False)
        if self._bar.disable:
            self.say(f"step {record['step']}/{self._num_steps}, epoch {record['epoch']:.1f}, {text}")

    def evaluation(self, record: dict[str, Any], view: str) -> None:
        """Write the scores of one evaluation, and say at what size and crop."""
        self._append({"kind": "eval", **record})
        scores = ", ".join(
            f"{name} top-1 {record[name]['top1']:.2f} % top-5 {record[name]['top5']:.2f} %"
            for name in ("raw", "ema")
            if name in record
        )
        self.say(f"step {record['step']}, epoch {record['epoch']:.1f}: {scores} ({view})")

    def saved(self, record: dict[str, Any]) -> None:
        """Write for how long a checkpoint kept the run waiting, and copy the logs to where checkpoints are."""
        self._append({"kind": "save", **record})
        self._logs.copy()

    def close(self) -> None:
        """Flush everything."""
        self._bar.close()
        self._board.close()
        self._file.close()
        self._logs.close()

    def _append(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(_finite(record), allow_nan=False) + "\n")
        self._file.flush()
        for name, value in _scalars(record):
            self._board.add_scalar(f"{record['kind']}/{name}", value, record["step"])
        self._board.flush()


class SilentWriter:
    """Take the place of a MetricWriter where another process writes."""

    def _ignore(self, *_: Any) -> None:
        pass

    advance = say = train = evaluation = saved = close = _ignore


class StepLog:
    """Sum up steps, and read the sum only after the next step was dispatched, so that the device never waits.

    Args:
        fresh: a sum of nothing, on the devices.
        batch_size: images in a step.
        every: steps between records.
        started: on the monotonic clock, when the run started; earlier if it was resumed.
    """

    def __init__(
        self,
        writer: MetricWriter | SilentWriter,
        fresh: Progress,
        *,
        batch_size: int,
        steps_per_epoch: int,
        every: int,
        started: float,
    ):
        self.progress = fresh
        self.skipped = 0
        self._writer = writer
        self._fresh = fresh
        self._batch_size = batch_size
        self._steps_per_epoch = steps_per_epoch
        self._every = every
        self._started = started
        self._held: tuple[int, Progress] | None = None
        self.restart()

    def restart(self) -> None:
        """Leave out of the throughput the time since the last record."""
        self._since, self._waited = time.monotonic(), 0.0

    def timed(self, batches: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Pass host batches on without their "skipped", and keep count of it and of the time spent waiting."""
        rows = iter(batches)
        batch = next(rows, None)
        self.restart()  # the start of the workers is not the pipeline's pace
        while batch is not None:
            self.skipped += int(batch.pop("skipped").sum())
            yield batch
            before = time.monotonic()
            batch = next(rows, None)
            self._waited += time.monotonic() - before

    def stepped(self, step: int) -> None:
        """Follow the dispatch of a step: read what was held before it, and hold its sum if a record is due.

        Raises:
            DivergedError: a loss or gradient among those read was not finite.
        """
        self._writer.advance()
        self._settle()
        if step % self._every == 0:
            self._held = step, self.progress
            self.progress = self._fresh

    def flush(self, step: int) -> None:
        """Read everything up to a step, and wait for it.

        Raises:
            DivergedError: a loss or gradient among those read was not finite.
        """
        self._settle()
        self._held = step, self.progress
        self.progress = self._fresh
        self._settle()

    def stamp(self, step: int) -> dict[str, float]:
        """Give the fields that every record starts with; `seconds` are those since the start of the run."""
        return {
            "step": step,
            "epoch": step / self._steps_per_epoch,
            "seconds": time.monotonic() - self._started,
        }

    def _settle(self) -> None:
        if self._held is None:
            return
        (step, held), self._held = self._held, None
        held = jax.device_get(held)
        if held.steps == 0:
            return
        elapsed = time.monotonic() - self._since
        record = self.stamp(step) | {
            "loss": float(held.loss_sum / held.steps),
            "learning_rate": float(held.learning_rate),
            "grad_norm": float(held.grad_norm),
            "images_per_second": float(held.steps * self._batch_size / elapsed),
            "input_wait": min(self._waited / elapsed, 1.0),
            "skipped": self.skipped,
        }
        self._writer.train(record)
        if held.first_nonfinite_step >= 0:
            raise DivergedError(
                f"step {int(held.first_nonfinite_step) + 1} has loss {held.nonfinite_loss:g} and gradient norm "
                f"{held.nonfinite_grad_norm:g} at learning rate {held.nonfinite_learning_rate:g}; the last checkpoint "
                "is from before. Lower config.optim.learning_rate, lengthen config.optim.warmup_epochs or set "
                "config.optim.clip_grad_norm"
            )
        self.restart()


def _open_whole_lines(path: epath.Path) -> IO[str]:
    """Open to append; a line that a kill cut off is closed first, so that it takes no other line with it."""
    file = path.open("a")
    if path.exists() and path.read_bytes()[-1:] not in (b"", b"\n"):
        file.write("\n")
    return file


def _finite(value: Any) -> Any:
    """Replace what is no finite number by None: JSON has no word for it."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
