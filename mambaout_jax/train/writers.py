"""Copies of a run's metrics for other programs: TensorBoard, CSV files and Weights & Biases."""

import csv
import io
import json
import secrets
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from etils import epath

from mambaout_jax.errors import reason
from mambaout_jax.extras import MODULES, check_installed, importing, not_importing
from mambaout_jax.machine import MachineError
from mambaout_jax.run.errors import RunError
from mambaout_jax.run.files import write_atomically

# Files that a resumed run continues.
RESUMED = ("train.csv", "eval.csv", "save.csv", "wandb.json")


class LoggedRun(NamedTuple):
    """What a writer is given.

    Args:
        folder: local folder of the logs.
        name: name of the run.
        first_step: step that the run resumes from; records up to it are kept, later ones are written again.
        config: values of the config by dotted name.
    """

    folder: epath.Path
    name: str
    first_step: int
    config: Mapping[str, Any]


class ScalarWriter(Protocol):
    """A writer of numbers that belong to a step."""

    def write(self, kind: str, step: int, scalars: Mapping[str, float]) -> None:
        """Write the numbers of a record of the kind "train", "eval" or "save"."""

    def close(self) -> None:
        """Write what is left, and release the resources."""


class TensorBoardWriter:
    """A writer of event files in `tensorboard/`."""

    def __init__(self, run: LoggedRun):
        with not_importing("torch"):  # which scalars do not need, and which takes 3 s and 180 MB
            from tensorboardX import SummaryWriter

        self._board = SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.first_step + 1)

    def write(self, kind: str, step: int, scalars: Mapping[str, float]) -> None:
        """Write the numbers of a record."""
        for name, value in scalars.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)
        self._board.flush()

    def close(self) -> None:
        """Close the event file."""
        self._board.close()


class CsvWriter:
    """A writer of one file per kind, such as `train.csv`, with a row per record and a column per number."""

    def __init__(self, run: LoggedRun):
        self._folder = run.folder
        self._first_step = run.first_step
        self._columns: dict[str, list[str]] = {}

    def write(self, kind: str, step: int, scalars: Mapping[str, float]) -> None:
        """Write the numbers of a record."""
        path = self._folder / f"{kind}.csv"
        row = {"step": step, **scalars}
        if not {*row} <= {*self._columns.get(kind, ())}:
            rows = list(csv.DictReader(io.StringIO(path.read_text()))) if path.exists() else []
            if kind not in self._columns:
                rows = [old for old in rows if _is_kept(old, self._first_step)]
            self._columns[kind] = list(dict.fromkeys(name for each in (*rows, row) for name in each))
            header = dict(zip(self._columns[kind], self._columns[kind], strict=True))
            write_atomically(path, self._format(kind, [header, *rows]))
        with path.open("a") as file:
            file.write(self._format(kind, [row]))

    def close(self) -> None:
        """Do nothing: every row is written at once."""

    def _format(self, kind: str, rows: list[dict[str, Any]]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self._columns[kind], lineterminator="\n").writerows(rows)
        return text.getvalue()


def _is_kept(row: Mapping[str | None, Any], first_step: int) -> bool:
    """Return whether a row is complete, and not of a step that is computed again."""
    complete = None not in row and None not in row.values()
    return complete and row.get("step", "").isdecimal() and int(row["step"]) <= first_step


class WandbWriter:
    """A writer to Weights & Biases; its project, entity and mode are in the environment, such as `WANDB_PROJECT`.

    A resumed run continues the run whose id is in `wandb.json`, with the last steps that were sent. Steps that are
    computed again after an interruption, with the same results, are not sent again, because Weights & Biases would keep
    both records. With another config, they are.

    Raises:
        RunError: the run cannot be started.
        MachineError: the server cannot be reached.
    """

    def __init__(self, run: LoggedRun):
        with importing("wandb", "config.metric_writers with wandb requires the package wandb"):
            import wandb

        self._file = run.folder / "wandb.json"
        self._state = json.loads(self._file.read_text()) if self._file.exists() else {}
        self._state = {"id": secrets.token_hex(4), "sent": {}, "config": None} | self._state
        config = json.loads(json.dumps(dict(run.config), default=str))
        if self._state["config"] != config:
            self._state |= {"config": config, "sent": {}}
        self._save()
        try:
            self._run = wandb.init(
                id=self._state["id"], resume="allow", name=run.name, dir=str(run.folder), config=dict(run.config)
            )
        except wandb.Error as error:
            if isinstance(error, wandb.CommError) and not isinstance(error, wandb.errors.AuthenticationError):
                raise MachineError(
                    f"Weights & Biases cannot be reached ({reason(error)}); start the run again, or set "
                    "WANDB_MODE=offline"
                ) from error
            raise RunError(
                f"Weights & Biases could not start the run ({reason(error)}); log in with `wandb login`, or set "
                "WANDB_MODE=offline"
            ) from error
        self._run.define_metric("*", step_metric="step")

    def write(self, kind: str, step: int, scalars: Mapping[str, float]) -> None:
        """Write the numbers of a record, unless they were sent before."""
        if step <= self._state["sent"].get(kind, -1):
            return
        self._run.log({"step": step, **{f"{kind}/{name}": value for name, value in scalars.items()}})
        self._state["sent"][kind] = step
        self._save()

    def close(self) -> None:
        """Upload what is left, and end the run, as failed while an exception is handled."""
        self._run.finish(exit_code=int(sys.exception() is not None))

    def _save(self) -> None:
        write_atomically(self._file, json.dumps(self._state))


def check_writers(names: Sequence[str]) -> None:
    """Check that what the writers need is installed.

    Raises:
        MissingExtraError: it is not.
    """
    for name in names:
        if name in MODULES:
            check_installed(name, f"config.metric_writers with {name}")


WRITERS: dict[str, type[ScalarWriter]] = {"tensorboard": TensorBoardWriter, "csv": CsvWriter, "wandb": WandbWriter}
