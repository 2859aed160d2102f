"""Checkpoints: the latest few and the best one, saved in the background, restored only if they fit exactly."""

import json
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
from mambaout_jax.run.errors import RunError
from mambaout_jax.run.files import write_atomically
from mambaout_jax.run.state import TrainState
from mambaout_jax.tasks.api import Metric

# Two, so that one is left to go back to when the newest cannot be read.
_NUM_LATEST = 2

# Orbax warns whenever a step is saved that was not evaluated, as most are not.
logging.get_absl_logger().addFilter(lambda record: "tracked_metric" not in record.getMessage())

_PREFIX = {"raw": "", "ema": "ema_"}
_ARRAY_ITEMS = ("params", "batch_stats", "ema_params", "ema_batch_stats", "optimizer")


class Checkpoints:
    """The saved states of a run under `directory`, one folder a step.

    A checkpoint has the items `params`, `batch_stats`, `ema_params`, `ema_batch_stats`, `optimizer` (each only if it
    has arrays) and `metadata`.

    Args:
        headline: the metric that the best checkpoint is chosen by; None for a directory where nothing is evaluated.

    Raises:
        RunError: nothing was saved there, and `read_only` says that nothing will be.
    """

    def __init__(self, directory: epath.Path, headline: Metric | None = None, *, read_only: bool = False):
        if read_only and not directory.exists():
            raise RunError(f"{directory.parent} has no checkpoint; train first, or name another workdir")
        self._directory = directory
        self._headline = headline
        self._manager = ocp.CheckpointManager(
            directory,
            # Named here, because a manager that has not saved yet cannot tell what an item is made of.
            item_handlers={
                "metadata": ocp.JsonCheckpointHandler(),
                **{name: ocp.StandardCheckpointHandler() for name in _ARRAY_ITEMS},
            },
            options=ocp.CheckpointManagerOptions(
                best_fn=self._rank,  # without it orbax does not write metrics, and forgets the best at a restart
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
                cleanup_tmp_directories=not read_only,
                create=not read_only,  # orbax's own read_only only adds a warning for every reader
            ),
        )

    def steps(self) -> list[int]:
        """List the saved steps, rising."""
        return sorted(self._manager.all_steps())

    def _rank(self, metrics: dict[str, float]) -> float:
        """Return a number that is higher for a better checkpoint."""
        if self._headline is None:
            return 0.0
        score = metrics[self._headline.key]
        return score if self._headline.higher_is_better else -score

    def save(self, state: TrainState, metadata: dict[str, Any], score: float | None = None) -> float:
        """Start to save; of a step that is there already only the score is written.

        Args:
            metadata: JSON values.
            score: the headline metric, if this state was evaluated.

        Returns:
            Seconds that the caller waited.

        Raises:
            LostProcessError: another process does not save.
            Exception: what went wrong with an earlier save in the background.
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
            metrics=None if score is None else {self._headline.key: score},
        )
        return time.monotonic() - started

    def _write_score(self, step: int, metadata: dict[str, Any], score: float) -> None:
        """Write the score next to a state: to save it again, orbax would delete it first."""
        self._manager.wait_until_finished()
        if distributed.is_first():
            folder = self._directory / str(step)
            (folder / "metrics").mkdir(exist_ok=True)
            write_atomically(folder / "metrics" / "metrics", json.dumps({self._headline.key: score}))
            write_atomically(folder / "metadata" / "metadata", json.dumps(metadata))
        distributed.barrier(f"scoring step {step}")
        self._manager.reload()

    def check(self) -> None:
        """Raise an error of a save in the background."""
        self._manager.check_for_errors()

    def close(self) -> None:
        """Wait for saves in the background, then close threads and files."""
        self._manager.close()

    def restore_state(
        self, abstract: TrainState, *, metadata: Sequence[str] = ()
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """Restore the newest state that can be read, with its metadata; None if nothing was saved.

        Steps that cannot be read are reported and, once an older one was read, moved aside to `unreadable.STEP` beside
        the checkpoints, so that the run can save them again.

        Args:
            abstract: shapes, dtypes and shardings of the state.
            metadata: names that it must have; without them a checkpoint is damaged.

        Raises:
            RunError: a checkpoint does not fit, or none of them can be read.
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
        """Restore only what inference needs, from the newest step that can be read.

        Args:
            abstract: the model's variables.
            weights: "ema" for the average, "raw" for those that were trained, or both.

        Returns:
            The step, and the variables by weights.

        Raises:
            RunError: nothing is there, nothing can be read, it does not fit, or no average was kept.
        """
        wanted = {
            _PREFIX[of] + name: tree for of in weights for name, tree in abstract.items() if jax.tree.leaves(tree)
        }
        restored = self._newest(lambda step: self._restore(step, wanted), move_aside=False)
        if restored is None:
            raise RunError(f"{self._directory} has no checkpoint; train first, or name another workdir")
        step, (items, _) = restored
        return step, {of: {name: items.get(_PREFIX[of] + name, {}) for name in abstract} for of in weights}

    def _restore(
        self, step: int, wanted: dict[str, Any], metadata: Sequence[str] = ()
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        saved = self._manager.item_metadata(step)
        for name, tree in wanted.items():
            if name.startswith("ema_") and name not in saved and "params" in saved:
                raise RunError(f"checkpoint {self._directory / str(step)} has no {name!r}; it has {_names(saved)}")
            if saved.get(name) is None:  # lost to a kill during a deletion, or truncated
                raise OSError(f"{name!r} is missing or cannot be described")
            _check_fit(self._directory / str(step) / name, saved[name], tree)
        arrays = {name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()}
        restored = self._manager.restore(step, args=ocp.args.Composite(metadata=ocp.args.JsonRestore(), **arrays))
        if missing := [name for name in metadata if name not in restored["metadata"]]:
            raise OSError(f"its metadata lacks {', '.join(missing)}")
        return {name: restored[name] for name in wanted}, restored["metadata"]

    def _newest(self, read: Callable[[int], Any], *, move_aside: bool) -> tuple[int, Any] | None:
        # Hosts that look while a run saves may see different steps.
        steps = json.loads(distributed.allgather_strings("listing checkpoints", json.dumps(self.steps()))[0])
        unreadable = []
        for step in reversed(steps):
            found, fault = None, ""
            try:
                found = step, read(step)
            except RunError:
                raise
            # Whatever a broken file makes orbax, tensorstore or JSON raise, the remedy is the same.
            except Exception as error:
                fault = _first_line(error)
            # One that a single process cannot read is no checkpoint for any.
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
        if steps:
            raise RunError(f"none of the checkpoints {steps} in {self._directory} can be read; use another workdir")
        return None

    def _move_aside(self, step: int) -> None:
        aside = f"unreadable.{step}"
        taken = len(list(self._directory.parent.glob(f"{aside}*")))
        # Into a folder that is there: a bucket has no empty ones.
        (self._directory / str(step)).rename(self._directory.parent / (f"{aside}.{taken}" if taken else aside))


def _items(state: TrainState) -> dict[str, Any]:
    items = {**state.variables, "optimizer": state.opt_state}
    if state.ema is not None:
        items |= {f"ema_{name}": tree for name, tree in state.ema.items()}
    # Orbax refuses an item without leaves.
    return {name: tree for name, tree in items.items() if jax.tree.leaves(tree)}


def _check_fit(where: epath.Path, saved: Any, wanted: Any) -> None:
    """Compare paths, shapes and dtypes: orbax casts a dtype silently."""
    theirs, ours = _shapes(saved), _shapes(wanted)
    faults = [f"{name} is missing" for name in ours.keys() - theirs.keys()]
    faults += [f"{name} is left over" for name in theirs.keys() - ours.keys()]
    faults += [
        f"{name} is {theirs[name]} where {ours[name]} is expected"
        for name in ours.keys() & theirs.keys()
        if ours[name] != theirs[name]
    ]
    if faults:
        raise RunError(f"checkpoint {where} does not fit the model: {'; '.join(sorted(faults))}")


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
