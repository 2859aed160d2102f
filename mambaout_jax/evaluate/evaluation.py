"""Evaluation of weights on a split, during or after training; each image is scored once."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from mambaout_jax import distributed
from mambaout_jax.data import Source, eval_batches
from mambaout_jax.errors import printable
from mambaout_jax.models import Model, cpu_compiler_options
from mambaout_jax.run.batch import check_eval_batch
from mambaout_jax.run.checkpoints import Checkpoints
from mambaout_jax.run.config import RunConfig
from mambaout_jax.run.dataset import open_split
from mambaout_jax.run.errors import RunError
from mambaout_jax.run.pretrained import load_pretrained_for
from mambaout_jax.run.signals import StopSignals
from mambaout_jax.run.workdir import (
    check_same_model,
    has_checkpoints,
    is_imported,
    load_config,
    load_environment,
    open_workdir,
)
from mambaout_jax.tasks.api import Batch, EvalOutput, Scores, Task
from mambaout_jax.tasks.labels import stated_labels
from mambaout_jax.weights import license_notice

# Entries of a batch that stay on the host.
_HOST_KEYS = ("index", "skipped")


class Evaluation(NamedTuple):
    """The result of one pass over a split.

    Args:
        scores: scores by kind of weights.
        predictions: arrays by name, row i for image i; None if not requested or if an image was excluded.
        skipped: number of records that cannot be decoded.
        unlabeled: number of images that were read but not scored, because they have no target.
    """

    scores: dict[str, Scores]
    predictions: dict[str, np.ndarray] | None
    skipped: int
    unlabeled: int


class Evaluator:
    """An evaluator of weights on any split of a task; programs are compiled at their first use and cached."""

    def __init__(self, config: RunConfig, task: Task, model: Model, *, mesh: Mesh, stop: StopSignals):
        check_eval_batch(config.eval_batch_size, mesh.size)
        self._config = config
        self._task = task
        self._model = model
        self._mesh = mesh
        self._stop = stop
        self._batch_size: int | None = None
        self._programs: dict[Any, Callable[..., EvalOutput]] = {}
        self.compile_seconds = 0.0  # of the last evaluation

    def describe(self, source: Source) -> dict[str, Any]:
        """Return task, dataset, split and the task's evaluation settings."""
        return {
            "task": self._task.name,
            "dataset": source.name,
            "split": source.split,
            **self._task.describe_evaluation(self._model, source),
        }

    def describe_input(self, source: Source) -> str:
        """Return a description of the evaluated images, such as their size and crop."""
        return self._task.describe_input(self.describe(source))

    def __call__(self, source: Source, weights: dict[str, Any], predict: str | None = None) -> Evaluation:
        """Compute the scores of several sets of weights in one pass.

        Args:
            weights: variables by kind of weights.
            predict: the kind of weights whose predictions are returned.

        Raises:
            StoppedError: the process received a signal.
        """
        task = self._task
        context = jax.tree.map(np.asarray, task.eval_context(source))
        context = distributed.put_global(context, jax.tree.map(lambda _: distributed.replicated(self._mesh), context))
        transform = task.eval_transform(self._model, source)
        started = time.monotonic()
        self._batch_size = self._batch_size or self._choose_batch_size(source)
        program = self._program(transform.empty(), context)
        self.compile_seconds = time.monotonic() - started
        # A list, not a set: all processes must gather in the same order.
        wanted = [name for name in weights if task.scores_from_rows or name == predict]
        totals: dict[str, list[dict[str, Any]]] = {name: [] for name in weights}
        collected: dict[str, list[Any]] = {name: [] for name in wanted}
        skipped = 0
        for batch, index, bad in self._batches(source, transform):
            self._stop.check()
            skipped += int(bad.sum())
            read = (index >= 0) & (bad == 0)
            for name, variables in weights.items():
                output = program(variables, batch, context)
                totals[name].append(output.totals)
                if name in wanted:
                    rows = jax.tree.map(lambda x, read=read: distributed.local_rows(x)[read], output.rows)
                    collected[name].append(task.collect(rows, index[read]))
        everywhere = {name: distributed.allgather_objects(parts) for name, parts in collected.items()}
        joined = {name: [part for parts in processes for part in parts] for name, processes in everywhere.items()}
        skipped = sum(map(int, distributed.allgather_strings("counting skipped records", str(skipped))))
        scores = {
            name: task.score(sum_totals(jax.device_get(batches)), joined.get(name, []), source)
            for name, batches in totals.items()
        }
        left_out = len(source) - int(next(iter(scores.values()))["count"])
        whole = predict in joined and not left_out
        return Evaluation(
            scores,
            task.join_predictions(joined[predict]) if whole else None,
            skipped=skipped,
            unlabeled=left_out - skipped,
        )

    def _choose_batch_size(self, source: Source) -> int:
        """Return the configured batch size, or less for a small split: a power of two of images per device.

        The first split decides for all, so that they share their programs.
        """
        per_device = -(-len(source) // self._mesh.size)
        return min(self._config.eval_batch_size, self._mesh.size * 2 ** (per_device - 1).bit_length())

    def _batches(self, source: Source, transform: Any) -> Iterator[tuple[Batch, np.ndarray, np.ndarray]]:
        """Yield batches on the devices, with the record index and the skips of each row of this process."""
        host_batches = eval_batches(
            source,
            transform,
            batch_size=self._batch_size,
            num_workers=self._config.data.num_workers,
            on_bad_record=self._config.data.on_bad_record,
            host_index=jax.process_index(),
            host_count=jax.process_count(),
        )
        sharding = distributed.batch_sharding(self._mesh)
        for batch in distributed.prefetch(host_batches, sharding, host_keys=_HOST_KEYS):
            on_devices = {name: value for name, value in batch.items() if name not in _HOST_KEYS}
            yield on_devices, batch["index"], batch["skipped"]

    def _program(self, example: Any, context: Any) -> Callable[..., EvalOutput]:
        """Return the compiled evaluation step for a batch of such examples."""
        leaves, structure = jax.tree.flatten((example, context))
        key = structure, tuple((np.shape(leaf), np.asarray(leaf).dtype) for leaf in leaves)
        if key not in self._programs:
            self._programs[key] = self._compile(example, context)
        return self._programs[key]

    def _compile(self, example: Any, context: Any) -> Callable[..., EvalOutput]:
        task, model, mesh = self._task, self._model, self._mesh
        batch = distributed.batch_shapes({**example, "mask": np.bool_(True)}, self._batch_size, mesh)
        variables = distributed.sharded_shapes(model.init, jax.random.key(0), sharding=mesh)

        def step(variables: Any, batch: Batch, context: Any) -> EvalOutput:
            return task.evaluate_batch(model, distributed.replicate(variables), batch, context)

        placed = EvalOutput(distributed.replicated(mesh), distributed.batch_sharding(mesh))
        jitted = jax.jit(step, out_shardings=placed, compiler_options=cpu_compiler_options())
        return self._stop.interruptible(jitted.lower(variables, batch, context).compile, "Compiling the evaluation.")


def sum_totals(batches: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sum the totals of batches on the host, integers in 64 bits: counts of pixels exceed 32 bits."""
    totals = {name: np.sum([batch[name] for batch in batches], axis=0) for name in batches[0]}
    return {name: total if np.ndim(total) else float(total) for name, total in totals.items()}


def evaluate(config: RunConfig | None, path: epath.PathLike) -> dict[str, Any]:
    """Evaluate weights on the validation split and on the additional sets of the config.

    The weights are the raw and EMA weights of the newest checkpoint in the workdir; without a checkpoint, those of
    `config.init_from`.

    Args:
        config: the config; None for that of the workdir.

    Returns:
        "weights", a description of the weights, and "sets", a record for each set with the validation split first:
        the evaluation settings, the numbers of excluded images, and the scores by kind of weights.

    Raises:
        RunError, TaskError, WeightsError, DataError: the config, the workdir, the weights or a set is invalid; raised
            before the evaluation starts.
        StoppedError: the process received a signal.
    """
    workdir = open_workdir(path)
    if config is None:
        config = _own_config(workdir)
    task = config.build_task()
    task.check()
    opened = [open_split(config, task, config.data.validation_split), *task.open_eval_sources()]
    sources = list({source.fingerprint: source for source in opened}.values())  # without duplicates
    mesh = distributed.make_mesh(config.fsdp)
    with StopSignals() as stop, jax.set_mesh(mesh):
        if has_checkpoints(workdir) or config.init_from is None:
            model, weights, description = _restore(config, task, workdir, sources, mesh)
        else:
            model, weights, description = _load_pretrained(config, task, sources, mesh)
        evaluator = Evaluator(config, task, model, mesh=mesh, stop=stop)
        return {"weights": description, "sets": [_score_set(evaluator, source, weights) for source in sources]}


def _own_config(workdir: epath.Path) -> RunConfig:
    config = load_config(workdir)
    if config.data.name is None:
        raise RunError(
            f"{workdir} has imported weights without a dataset; add the --config of an experiment with this model and "
            "a dataset"
        )
    return config


def _restore(
    config: RunConfig, task: Task, workdir: epath.Path, sources: Sequence[Source], mesh: Mesh
) -> tuple[Model, dict[str, Any], str]:
    environment = load_environment(workdir)
    check_same_model(workdir, load_config(workdir), config)
    for source in sources:
        task.check_source(source, environment["labels"])
    model = task.build_model(environment["labels"])
    _print_notice(environment.get("license"), model)
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    kept = ["raw"] if is_imported(workdir) or config.optim.ema_decay is None else ["raw", "ema"]
    abstract = distributed.sharded_shapes(model.init, jax.random.key(0), sharding=mesh)
    step, weights = checkpoints.restore_variables(abstract, kept)
    checkpoints.close()
    imported = environment.get("imported_from")
    return model, weights, f"imported from {imported}" if imported else f"step {step}"


def _load_pretrained(
    config: RunConfig, task: Task, sources: Sequence[Source], mesh: Mesh
) -> tuple[Model, dict[str, Any], str]:
    if config.init_head == "new":
        raise RunError("config.init_head is 'new', but a new last layer is untrained; set it to 'keep' to evaluate")
    model = task.build_model(sources[0].labels)
    pretrained = load_pretrained_for(config.init_from, model, head_task=config.task)
    if not pretrained.has_head:
        raise RunError(f"{config.init_from} has weights of the backbone only; train the head first")
    _print_notice(pretrained.license, model)
    labels = stated_labels(task, pretrained.model, pretrained.labels)
    for source in sources:
        task.check_source(source, labels)
    placed = distributed.shardings(distributed.sharded_shapes(model.init, jax.random.key(0), sharding=mesh))
    return model, {"raw": distributed.put_global(pretrained.variables, placed)}, pretrained.description


def _print_notice(license: str | None, model: Model) -> None:
    """Print a sentence about a license that forbids commercial use of the weights."""
    if (notice := license_notice(license, model.name)) and distributed.is_first():
        print(printable(notice), file=sys.stderr)


def _score_set(evaluator: Evaluator, source: Source, weights: dict[str, Any]) -> dict[str, Any]:
    scored = evaluator(source, weights)
    counts = {"skipped": scored.skipped, "unlabeled": scored.unlabeled}
    return {**evaluator.describe(source), **counts, **scored.scores}
