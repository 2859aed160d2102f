"""Metrics of a run: measured in the loop, written to the console, to metrics.jsonl and by `writers`."""

import contextlib
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import IO, Any

import jax
from etils import epath
from tqdm import tqdm

from mambaout_jax.checks import as_number
from mambaout_jax.errors import printable
from mambaout_jax.run.errors import DivergedError
from mambaout_jax.run.files import write_atomically
from mambaout_jax.run.logs import LogFolder
from mambaout_jax.tasks.api import Metric
from mambaout_jax.train.step import StepMetrics
from mambaout_jax.train.writers import RESUMED, WRITERS, LoggedRun, ScalarWriter

# A run that waits for data longer than this share of its time is input bound.
INPUT_BOUND = 0.05


class MetricWriter:
    """A writer of records to metrics.jsonl, the console and the given writers.

    The console shows a progress bar on a terminal, and one line per record elsewhere.

    Args:
        metrics: the metrics of an evaluation.
        writers: keys of `WRITERS`.
        config: values of the config by dotted name.
    """

    def __init__(
        self,
        workdir: epath.Path,
        *,
        num_steps: int,
        first_step: int,
        steps_per_epoch: int,
        metrics: Sequence[Metric],
        writers: Sequence[str] = (),
        config: Mapping[str, Any] = MappingProxyType({}),
    ):
        with contextlib.ExitStack() as outputs:
            self._logs = LogFolder(workdir, ("metrics.jsonl", *RESUMED))
            outputs.callback(self._logs.close)
            self._file = outputs.enter_context(_open_after(self._logs.path / "metrics.jsonl", first_step))
            run = LoggedRun(self._logs.path, workdir.name, first_step, config)
            self._writers = [self._open(WRITERS[name], run, outputs) for name in dict.fromkeys(writers)]
            self._outputs = outputs.pop_all()
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
        self._metrics = metrics
        self._clock: tuple[float, int] | None = None  # starts at the first record, after compilation

    def advance(self) -> None:
        """Advance the progress bar by one step."""
        self._bar.update()

    def print_line(self, text: str) -> None:
        """Print a line above the progress bar."""
        tqdm.write(printable(text), file=sys.stderr)

    def train(self, record: dict[str, Any]) -> None:
        """Write the measurements of the last steps."""
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
            self.print_line(f"step {record['step']}/{self._num_steps}, epoch {record['epoch']:.1f}, {text}")

    def exclude(self, seconds: float) -> None:
        """Exclude time that is spent once, such as that of a compilation, from the estimate of the time left."""
        if self._clock is not None:
            self._clock = self._clock[0] + seconds, self._clock[1]

    def evaluation(self, record: Mapping[str, Any], inputs: str) -> None:
        """Write the scores of an evaluation.

        Args:
            inputs: a description of the evaluated images, such as their size and crop.
        """
        self._append({"kind": "eval", **record})
        scores = ", ".join(f"{name} {self._describe(record[name])}" for name in ("raw", "ema") if name in record)
        self.print_line(f"step {record['step']}, epoch {record['epoch']:.1f}: {scores} ({inputs})")

    def _describe(self, scores: Mapping[str, float]) -> str:
        """Return the scores of one set of weights as text, without the loss."""
        shown = [metric for metric in self._metrics if metric.key in scores and metric.key != "loss"]
        return " ".join(f"{metric.label} {metric.format(scores[metric.key])} {metric.unit}".strip() for metric in shown)

    def saved(self, record: dict[str, Any]) -> None:
        """Write the time for which a checkpoint blocked the run, and copy the logs to the workdir."""
        self._append({"kind": "save", **record})
        self._logs.copy()

    def close(self) -> None:
        """Close all outputs, even if one of them fails."""
        self._bar.close()
        self._outputs.close()

    @staticmethod
    def _open(kind: type[ScalarWriter], run: LoggedRun, outputs: contextlib.ExitStack) -> ScalarWriter:
        writer = kind(run)
        outputs.callback(writer.close)
        return writer

    def _append(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(_finite(record), allow_nan=False) + "\n")
        self._file.flush()
        for writer in self._writers:
            writer.write(record["kind"], record["step"], dict(_scalars(record)))


class SilentWriter:
    """A replacement for MetricWriter in processes other than the first, which write nothing."""

    def _ignore(self, *_: Any) -> None:
        pass

    advance = print_line = train = exclude = evaluation = saved = close = _ignore


class StepLog:
    """The measurements of a run since its last record.

    Metrics are read only after the next step was dispatched, so that the device never waits.

    Args:
        fresh: step metrics of zero steps, on the devices.
        batch_size: images per step.
        every: steps between records.
        started: start of the run on the monotonic clock, moved back by the training time before a restart.
    """

    def __init__(
        self,
        writer: MetricWriter | SilentWriter,
        fresh: StepMetrics,
        *,
        batch_size: int,
        steps_per_epoch: int,
        every: int,
        started: float,
    ):
        self.skipped = 0
        self.fresh = fresh
        self._writer = writer
        self._batch_size = batch_size
        self._steps_per_epoch = steps_per_epoch
        self._every = every
        self._started = started
        self._pending: tuple[int, StepMetrics] | None = None
        self.restart()

    def restart(self) -> None:
        """Restart the clock of the throughput, to exclude evaluations and the like."""
        self._since, self._waited = time.monotonic(), 0.0

    def timed(self, batches: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield batches; measure the time spent waiting for them, and remove and sum their "skipped".

        The wait for the first batch is excluded: it covers the start of the data workers and fills all queues.
        """
        rows = iter(batches)
        batch = next(rows, None)
        self.restart()
        while batch is not None:
            self.skipped += int(batch.pop("skipped").sum())
            yield batch
            before = time.monotonic()
            batch = next(rows, None)
            self._waited += time.monotonic() - before

    def after_step(self, step: int, metrics: StepMetrics) -> StepMetrics:
        """Write the pending metrics, after the next step was dispatched, and keep these pending if a record is due.

        Returns:
            The metrics for the next step: fresh ones after a record.

        Raises:
            DivergedError: a loss or gradient in the pending metrics is not finite.
        """
        self._writer.advance()
        self._write_pending()
        if step % self._every:
            return metrics
        self._pending = step, metrics
        return self.fresh

    def flush(self, step: int, metrics: StepMetrics) -> StepMetrics:
        """Wait for a step and write all metrics up to it.

        Returns:
            Fresh metrics.

        Raises:
            DivergedError: a loss or gradient in the metrics is not finite.
        """
        self._write_pending()
        self._pending = step, metrics
        self._write_pending()
        return self.fresh

    def stamp(self, step: int) -> dict[str, float]:
        """Return the common fields of all records: step, epoch and the seconds since the start of the run."""
        return {
            "step": step,
            "epoch": step / self._steps_per_epoch,
            "seconds": time.monotonic() - self._started,
        }

    def _write_pending(self) -> None:
        if self._pending is None:
            return
        (step, pending), self._pending = self._pending, None
        read = jax.device_get(pending)
        if read.steps == 0:
            return
        elapsed = time.monotonic() - self._since
        record = self.stamp(step) | {
            "loss": float(read.loss / read.steps),
            **{f"loss/{name}": float(total / read.steps) for name, total in read.loss_terms.items()},
            "learning_rate": float(read.learning_rate),
            "grad_norm": float(read.grad_norm),
            "images_per_second": float(read.steps * self._batch_size / elapsed),
            "input_wait": min(self._waited / elapsed, 1.0),
            "skipped": self.skipped,
        }
        self._writer.train(record)
        if read.first_nonfinite_step >= 0:
            raise DivergedError(
                f"step {int(read.first_nonfinite_step) + 1} has loss {read.nonfinite_loss:g} and gradient norm "
                f"{read.nonfinite_grad_norm:g} at learning rate {read.nonfinite_learning_rate:g}; the last checkpoint "
                "is from an earlier step. Decrease config.optim.learning_rate, lengthen the warm-up "
                "(config.optim.warmup_epochs, or warmup_steps with the schedules linear and drops), or set "
                "config.optim.clip_grad_norm"
            )
        self.restart()


def _open_after(path: epath.Path, step: int) -> IO[str]:
    """Open a file of records for appending, without the records after a step, which will be written again.

    An incomplete last line, left by a kill, is terminated first.
    """
    if path.exists():
        lines = path.read_bytes().decode(errors="replace").splitlines(keepends=True)
        kept = [line for line in lines if not _is_after(line, step)]
        if len(kept) < len(lines):
            write_atomically(path, "".join(kept))
    file = path.open("a")
    if path.exists() and path.read_bytes()[-1:] not in (b"", b"\n"):
        file.write("\n")
    return file


def _is_after(line: str, step: int) -> bool:
    try:
        return as_number(json.loads(line)["step"]) > step
    except (ValueError, KeyError, TypeError):
        return False  # damaged; the report counts such lines


def _finite(value: Any) -> Any:
    """Replace numbers that are not finite with None, because JSON cannot represent them."""
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
