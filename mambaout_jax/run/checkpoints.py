"""Checkpoints: the latest two and the best one, saved in the background, restored only on an exact match."""

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from orbax.checkpoint import checkpoint_managers

from mambaout_jax import distributed
from mambaout_jax.checks import as_number
from mambaout_jax.machine import MachineError, describe_fault
from mambaout_jax.run.errors import RunError
from mambaout_jax.run.files import write_atomically
from mambaout_jax.run.state import TrainState
from mambaout_jax.storage import find_pattern
from mambaout_jax.tasks.api import Metric

# Two, as a fallback if the newest one cannot be read.
_NUM_LATEST = 2

# Orbax warns about each saved step without a metric, which most steps are.
logging.get_absl_logger().addFilter(lambda record: "tracked_metric" not in record.getMessage())

_PREFIX = {"raw": "", "ema": "ema_"}
_ARRAY_ITEMS = ("params", "batch_stats", "ema_params", "ema_batch_stats", "optimizer")


class _NoAverageError(RunError):
    """A checkpoint without the EMA weights that were requested."""


class Checkpoints:
    """The saved states of a run under `directory`, one folder per step.

    A checkpoint has the items `params`, `batch_stats`, `ema_params`, `ema_batch_stats`, `optimizer` (each only if it
    has arrays) and `metadata`.

    Args:
        metric: the one that selects the best checkpoint; None if nothing is evaluated.

    Raises:
        RunError: the directory does not exist and `read_only` is set, or orbax cannot write to its path.
    """

    def __init__(self, directory: epath.Path, metric: Metric | None = None, *, read_only: bool = False):
        if read_only and not directory.exists():
            raise RunError(f"{directory.parent} has no checkpoint; train first, or use another workdir")
        if not read_only and (fault := find_pattern(directory)):
            raise RunError(f"{directory} {fault}")
        self._directory = directory
        self._metric = metric
        if not read_only:
            self._remove_unreadable_scores()
        self._manager = ocp.CheckpointManager(
            directory,
            # Explicit handlers, because a manager that has not saved yet cannot infer them.
            item_handlers={
                "metadata": ocp.JsonCheckpointHandler(),
                **{name: ocp.StandardCheckpointHandler() for name in _ARRAY_ITEMS},
            },
            options=ocp.CheckpointManagerOptions(
                best_fn=self._rank,  # without it orbax does not write metrics, and loses the best step on a restart
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                    [
                        checkpoint_managers.LatestN(_NUM_LATEST),
                        checkpoint_managers.BestN(
                            get_metric_fn=self._rank,
                            n=1,
                            keep_checkpoints_without_metrics=False,
                        ),
                    ]
                ),
                lightweight_initialize=read_only,  # does not read scores, which may be damaged
                cleanup_tmp_directories=not read_only,
                create=not read_only,  # orbax's own read_only would print a warning
            ),
        )

    def _remove_unreadable_scores(self) -> None:
        """Remove the scores that are damaged, because orbax cannot open a directory that has one."""
        if distributed.is_first() and self._metric is not None and self._directory.exists():
            for step in self._directory.iterdir():
                metrics = step / "metrics"
                if metrics.exists() and not _has_score(metrics / "metrics", self._metric.key):
                    logging.warning("the score of checkpoint %s cannot be read; it cannot be the best one", step)
                    metrics.rmtree()
        distributed.barrier("checking the scores of checkpoints")

    def steps(self) -> list[int]:
        """Return the saved steps in ascending order."""
        return sorted(self._manager.all_steps())

    def _rank(self, metrics: dict[str, float]) -> float:
        """Return a number that is higher for a better checkpoint."""
        if self._metric is None:
            return 0.0
        score = metrics[self._metric.key]
        return score if self._metric.higher_is_better else -score

    def save(self, state: TrainState, metadata: dict[str, Any], score: float | None = None) -> float:
        """Start to save a state in the background; for a step that is already saved, write only the score.

        Args:
            metadata: JSON values.
            score: the primary metric, if this state was evaluated.

        Returns:
            The seconds for which the caller was blocked.

        Raises:
            LostProcessError: another process did not reach this save.
            Exception: an earlier save in the background failed.
        """
        started, step = time.monotonic(), int(state.step)
        distributed.barrier(f"saving step {step}")
        if step in self._manager.all_steps():
            if score is not None:
                self._write_score(step, metadata, score)
            return time.monotonic() - started
        arrays = {name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()}
        self._manager.save(
            step,
            args=ocp.args.Composite(metadata=ocp.args.JsonSave(metadata), **arrays),
            metrics=None if score is None else {self._metric.key: score},
        )
        return time.monotonic() - started

    def _write_score(self, step: int, metadata: dict[str, Any], score: float) -> None:
        """Write the score into a saved step, because orbax would delete the step before saving it again."""
        self._manager.wait_until_finished()
        if distributed.is_first():
            folder = self._directory / str(step)
            (folder / "metrics").mkdir(exist_ok=True)
            write_atomically(folder / "metrics" / "metrics", json.dumps({self._metric.key: score}))
            write_atomically(folder / "metadata" / "metadata", json.dumps(metadata))
        distributed.barrier(f"scoring step {step}")
        self._manager.reload()

    def check(self) -> None:
        """Raise the error of a failed save in the background."""
        self._manager.check_for_errors()

    def close(self) -> None:
        """Wait for the saves in the background, then close threads and files."""
        self._manager.close()

    def restore_state(
        self, abstract: TrainState, *, metadata: Sequence[str] = ()
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """Restore the newest readable state with its metadata; None if nothing was saved.

        Unreadable steps are logged. After an older one is restored, they are renamed to `unreadable.STEP` in the
        workdir, so that the run can save these steps again.

        Args:
            abstract: shapes, dtypes and shardings of the state.
            metadata: required metadata keys; a checkpoint that lacks one counts as unreadable.

        Raises:
            RunError: a checkpoint does not match the state, or all are unreadable.
        """
        restored = self._newest(lambda step: self._restore(step, _items(abstract), metadata), move_aside=True)
        if restored is None:
            return None
        step, (items, found) = restored
        ema = None
        if abstract.ema is not None:
            ema = {"params": items["ema_params"], "batch_stats": items.get("ema_batch_stats", {})}
        state = TrainState(
            step=distributed.put_global(np.array(step, np.int32), abstract.step.sharding),
            variables={"params": items["params"], "batch_stats": items.get("batch_stats", {})},
            ema=ema,
            opt_state=items["optimizer"],
        )
        return state, found

    def restore_variables(self, abstract: dict[str, Any], weights: Sequence[str]) -> tuple[int, dict[str, Any]]:
        """Restore the model's variables from the newest readable step.

        Args:
            abstract: shapes, dtypes and shardings of the model's variables.
            weights: "ema", "raw" or both.

        Returns:
            The step, and the variables by kind of weights.

        Raises:
            RunError: no checkpoint exists, all are unreadable, the variables do not match, or the EMA was not saved.
        """
        wanted = {
            _PREFIX[of] + name: tree for of in weights for name, tree in abstract.items() if jax.tree.leaves(tree)
        }
        restored = self._newest(lambda step: self._restore(step, wanted), move_aside=False)
        if restored is None:
            raise RunError(f"{self._directory} has no checkpoint; train first, or use another workdir")
        step, (items, _) = restored
        return step, {of: {name: items.get(_PREFIX[of] + name, {}) for name in abstract} for of in weights}

    def _restore(
        self, step: int, wanted: dict[str, Any], metadata: Sequence[str] = ()
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        saved = self._manager.item_metadata(step)
        for name, tree in wanted.items():
            if name.startswith("ema_") and name not in saved and "params" in saved:
                raise _NoAverageError(
                    f"checkpoint {self._directory / str(step)} has no {name!r}; it has {_names(saved)}"
                )
            if saved.get(name) is None:  # truncated, or the process was killed while it deleted the step
                raise OSError(f"{name!r} is missing or has no readable metadata")
            _check_fit(self._directory / str(step) / name, saved[name], tree)
        arrays = {name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()}
        restored = self._manager.restore(step, args=ocp.args.Composite(metadata=ocp.args.JsonRestore(), **arrays))
        if missing := [name for name in metadata if name not in restored["metadata"]]:
            raise OSError(f"its metadata lacks {', '.join(missing)}")
        return {name: restored[name] for name in wanted}, restored["metadata"]

    def _newest(self, read: Callable[[int], Any], *, move_aside: bool) -> tuple[int, Any] | None:
        # Hosts may see different steps while a run saves; all use the list of the first.
        steps = json.loads(distributed.allgather_strings("listing checkpoints", json.dumps(self.steps()))[0])
        unreadable, no_average = [], None
        for step in reversed(steps):
            found, fault = None, ""
            try:
                found = step, read(step)
            except _NoAverageError as error:  # it may have been lost; an older checkpoint can have it
                no_average, fault = no_average or error, str(error)
            except RunError:
                raise
            # Orbax, tensorstore and JSON raise many types for a damaged file; all are handled the same way.
            except Exception as error:
                # A fault of the machine says nothing about the checkpoint, which would be moved aside.
                missing = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
                if not missing and (machine_fault := describe_fault(error, self._directory / str(step))):
                    raise MachineError(f"checkpoint {self._directory / str(step)}: {machine_fault}") from error
                fault = _first_line(error)
            # A checkpoint that one process cannot read is unreadable for all.
            if fault := next(filter(None, distributed.allgather_strings(f"reading step {step}", fault)), ""):
                logging.warning("checkpoint %s cannot be read (%s)", self._directory / str(step), fault)
                unreadable.append(step)
                continue
            if move_aside and unreadable:
                if distributed.is_first():
                    for other in unreadable:
                        self._move_aside(other)
                distributed.barrier("moving unreadable checkpoints aside")
                self._manager.reload()
            return found
        if no_average is not None:
            raise no_average
        if steps:
            raise RunError(f"none of the checkpoints {steps} in {self._directory} can be read; use another workdir")
        return None

    def _move_aside(self, step: int) -> None:
        aside = f"unreadable.{step}"
        taken = sum(path.name.startswith(aside) for path in self._directory.parent.iterdir())
        # The target's parent always exists; buckets have no empty folders.
        (self._directory / str(step)).rename(self._directory.parent / (f"{aside}.{taken}" if taken else aside))


def _has_score(file: epath.Path, key: str) -> bool:
    try:
        return math.isfinite(as_number(json.loads(file.read_text())[key]))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, TypeError, KeyError):
        return False


def _items(state: TrainState) -> dict[str, Any]:
    items = {**state.variables, "optimizer": state.opt_state}
    if state.ema is not None:
        items |= {f"ema_{name}": tree for name, tree in state.ema.items()}
    # Orbax refuses an item without leaves.
    return {name: tree for name, tree in items.items() if jax.tree.leaves(tree)}


def _check_fit(where: epath.Path, saved: Any, wanted: Any) -> None:
    """Check that paths, shapes and dtypes match, because orbax casts dtypes silently."""
    theirs, ours = _shapes(saved), _shapes(wanted)
    faults = [f"{name} is missing" for name in ours.keys() - theirs.keys()]
    faults += [f"{name} is unexpected" for name in theirs.keys() - ours.keys()]
    faults += [
        f"{name} is {theirs[name]}, expected {ours[name]}"
        for name in ours.keys() & theirs.keys()
        if ours[name] != theirs[name]
    ]
    if faults:
        raise RunError(f"checkpoint {where} does not match the model: {'; '.join(sorted(faults))}")


def _shapes(tree: Any) -> dict[str, str]:
    flat = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda leaf: hasattr(leaf, "shape"))
    return {
        ".".join(str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in path): (
            f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
        )
        for path, leaf in flat
    }


def _names(saved: Iterable[str]) -> str:
    return ", ".join(sorted(saved))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
