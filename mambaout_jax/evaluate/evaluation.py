"""Evaluation: score weights on a split, each image once, in a run or after it."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from mambaout_jax import distributed
from mambaout_jax.data import Source, eval_batches
from mambaout_jax.data.prepare import ensure_prepared
from mambaout_jax.models import Model, cpu_compiler_options
from mambaout_jax.run.batch import check_eval_batch
from mambaout_jax.run.checkpoints import Checkpoints
from mambaout_jax.run.config import RunConfig
from mambaout_jax.run.errors import RunError
from mambaout_jax.run.pretrained import load_pretrained_for
from mambaout_jax.run.signals import StopSignals
from mambaout_jax.run.workdir import (
    check_same_model,
    is_imported,
    is_workdir,
    load_config,
    load_environment,
    open_workdir,
)
from mambaout_jax.tasks.api import Batch, EvalOutput, Scores, Task

# What only the host reads of a batch.
_HOST_KEYS = ("index", "skipped")


class Evaluation(NamedTuple):
    """The result of one pass over a split.

    Args:
        scores: by the name of the weights.
        predictions: arrays by name; None where none were asked for, or where an image was left out: row i would not
            be image i.
        skipped: records that do not decode.
        unlabelled: images that were read and not scored, as they have no target.
    """

    scores: dict[str, Scores]
    predictions: dict[str, np.ndarray] | None
    skipped: int
    unlabelled: int


class Evaluator:
    """Scores variables on any split of a task; a program is compiled at its first use and then shared."""

    def __init__(self, config: RunConfig, task: Task, model: Model, *, mesh: Mesh, stop: StopSignals):
        check_eval_batch(config.eval_batch_size, mesh.size)
        self._config = config
        self._task = task
        self._model = model
        self._mesh = mesh
        self._stop = stop
        self._programs: dict[Any, Callable[..., EvalOutput]] = {}

    def describe(self, source: Source) -> dict[str, Any]:
        """Return what is scored, and how images are evaluated."""
        return {
            "task": self._task.name,
            "dataset": source.name,
            "split": source.split,
            **self._task.describe_evaluation(self._model, source),
        }

    def describe_input(self, source: Source) -> str:
        """Return how images are evaluated, in words."""
        return self._task.describe_input(self.describe(source))

    def __call__(self, source: Source, weights: dict[str, Any], predict: str | None = None) -> Evaluation:
        """Score several sets of weights in one pass.

        Args:
            weights: variables by name.
            predict: the name of those whose predictions are returned.

        Raises:
            StoppedError: a signal came.
        """
        task = self._task
        context = jax.tree.map(np.asarray, task.eval_context(source))
        context = distributed.put_global(context, jax.tree.map(lambda _: distributed.replicated(self._mesh), context))
        transform = task.eval_transform(self._model, source)
        program = self._program(transform.empty(), context)
        # A list, not a set: its order is the same in all processes, which gather one after another.
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
            name: task.score(_sum(jax.device_get(batches)), joined.get(name, []), source)
            for name, batches in totals.items()
        }
        left_out = len(source) - int(next(iter(scores.values()))["count"])
        whole = predict in joined and not left_out
        return Evaluation(
            scores,
            task.join_predictions(joined[predict]) if whole else None,
            skipped=skipped,
            unlabelled=left_out - skipped,
        )

    def _batches(self, source: Source, transform: Any) -> Iterator[tuple[Batch, np.ndarray, np.ndarray]]:
        """Yield batches on the devices, with the record and the skips of each row of this process."""
        host_batches = eval_batches(
            source,
            transform,
            batch_size=self._config.eval_batch_size,
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
        """Return the compiled evaluation of a batch of such examples."""
        leaves, structure = jax.tree.flatten((example, context))
        key = structure, tuple((np.shape(leaf), np.asarray(leaf).dtype) for leaf in leaves)
        if key not in self._programs:
            self._programs[key] = self._compile(example, context)
        return self._programs[key]

    def _compile(self, example: Any, context: Any) -> Callable[..., EvalOutput]:
        task, model, mesh = self._task, self._model, self._mesh
        batch = distributed.batch_shapes({**example, "mask": np.bool_(True)}, self._config.eval_batch_size, mesh)
        variables = distributed.sharded_shapes(model.init, jax.random.key(0), placed=mesh)

        def step(variables: Any, batch: Batch, context: Any) -> EvalOutput:
            return task.evaluate_batch(model, distributed.replicate(variables), batch, context)

        placed = EvalOutput(distributed.replicated(mesh), distributed.batch_sharding(mesh))
        jitted = jax.jit(step, out_shardings=placed, compiler_options=cpu_compiler_options())
        return self._stop.interruptible(jitted.lower(variables, batch, context).compile)


def _sum(batches: Sequence[dict[str, Any]]) -> dict[str, Any]:
    totals = {name: sum(batch[name] for batch in batches) for name in batches[0]}
    return {name: total if np.ndim(total) else float(total) for name, total in totals.items()}


def evaluate(config: RunConfig | None, path: epath.PathLike) -> dict[str, Any]:
    """Score weights on the validation split and on each set that the config names.

    The weights are those of the newest checkpoint of the workdir, raw and averaged; without a checkpoint, those that
    `config.init_from` names.

    Args:
        config: None for the workdir's own.

    Returns:
        Under "weights" what they are, and under "sets" for each set, the validation split first: what it is, how its
        images are evaluated, how many of them were left out, and its scores by weights.

    Raises:
        RunError, TaskError, ConvertError, DataError: the config, the workdir, the weights or a set does not fit; raised
            before anything is scored.
        StoppedError: a signal came.
    """
    workdir = open_workdir(path)
    if config is None:
        config = _own_config(workdir)
    task = config.build_task()
    task.check()
    ensure_prepared(config.data.name, config.data.data_dir)
    opened = [task.open_source(config.data.validation_split), *task.open_eval_sources()]
    sources = list({source.fingerprint: source for source in opened}.values())  # each once
    mesh = distributed.make_mesh(config.fsdp)
    with StopSignals() as stop, jax.set_mesh(mesh):
        if is_workdir(workdir) or config.init_from is None:
            model, weights, description = _restore(config, task, workdir, sources, mesh)
        else:
            model, weights, description = _load_given(config, task, sources, mesh)
        evaluator = Evaluator(config, task, model, mesh=mesh, stop=stop)
        return {"weights": description, "sets": [_score_set(evaluator, source, weights) for source in sources]}


def _own_config(workdir: epath.Path) -> RunConfig:
    config = load_config(workdir)
    if config.data.name is None:
        raise RunError(
            f"{workdir} has imported weights and names no dataset; give the --config of an experiment that does, with "
            "this model"
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
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    kept = ["raw"] if is_imported(workdir) or config.optim.ema_decay is None else ["raw", "ema"]
    abstract = distributed.sharded_shapes(model.init, jax.random.key(0), placed=mesh)
    step, weights = checkpoints.restore_variables(abstract, kept)
    checkpoints.close()
    imported = environment.get("imported_from")
    return model, weights, f"imported from {imported}" if imported else f"step {step}"


def _load_given(
    config: RunConfig, task: Task, sources: Sequence[Source], mesh: Mesh
) -> tuple[Model, dict[str, Any], str]:
    if config.init_head == "new":
        raise RunError(
            "config.init_head is 'new', and a new last layer has learned nothing to evaluate; set it to 'keep'"
        )
    model = task.build_model(sources[0].labels)
    pretrained = load_pretrained_for(config.init_from, model, head_task=config.task)
    labels = task.imported_labels(pretrained.model, pretrained.labels).labels
    for source in sources:
        task.check_source(source, labels)
    placed = distributed.shardings(distributed.sharded_shapes(model.init, jax.random.key(0), placed=mesh))
    return model, {"raw": distributed.put_global(pretrained.variables, placed)}, pretrained.description


def _score_set(evaluator: Evaluator, source: Source, weights: dict[str, Any]) -> dict[str, Any]:
    scored = evaluator(source, weights)
    counts = {"skipped": scored.skipped, "unlabelled": scored.unlabelled}
    return {**evaluator.describe(source), **counts, **scored.scores}
