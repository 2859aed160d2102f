"""The training loop: prepare, restore or initialize, loop, finish."""

import contextlib
import json
import math
import sys
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from mambaout_jax import distributed
from mambaout_jax.data import DataError, Source
from mambaout_jax.evaluate.evaluation import Evaluation, Evaluator
from mambaout_jax.machine import MachineError, raise_machine_fault
from mambaout_jax.models import Model
from mambaout_jax.run.batch import describe_batch
from mambaout_jax.run.checkpoints import Checkpoints
from mambaout_jax.run.config import RunConfig, nest
from mambaout_jax.run.dataset import open_split
from mambaout_jax.run.errors import DivergedError, RunError, StoppedError
from mambaout_jax.run.files import write_arrays, write_atomically
from mambaout_jax.run.pretrained import Pretrained, load_pretrained_for, merge_pretrained
from mambaout_jax.run.signals import StopSignals
from mambaout_jax.run.state import TrainState, with_variables
from mambaout_jax.run.teacher import Teacher, load_teacher
from mambaout_jax.run.workdir import (
    check_space,
    claim_workdir,
    describe_environment,
    describe_program,
    has_checkpoints,
    load_config,
    load_environment,
    lock_workdir,
    open_workdir,
    record_run,
)
from mambaout_jax.storage import is_remote
from mambaout_jax.tasks.api import Task
from mambaout_jax.train.inputs import training_batches
from mambaout_jax.train.metrics import MetricWriter, SilentWriter, StepLog
from mambaout_jax.train.program import CompiledSteps, TrainingProgram, check_batches, training_program
from mambaout_jax.train.recipe import differences_from_recipe
from mambaout_jax.train.trace import StepTrace
from mambaout_jax.train.writers import check_writers
from mambaout_jax.weights import license_notice
from mambaout_jax.weights.options import model_args
from mambaout_jax.words import count


def train(config: RunConfig, path: epath.PathLike) -> dict[str, Any]:
    """Train the model of a config, or resume the run in the workdir.

    Returns:
        The content of results.json.

    Raises:
        RunError, TaskError, DataError, ModelError: the config, the workdir, the dataset or the model is invalid.
        DivergedError: a loss or gradient is not finite; the last checkpoint is from an earlier step.
        StoppedError: the process received a signal; finished steps are saved.
    """
    started = time.monotonic()
    setup = _prepare(config, path)
    with StopSignals() as stop, jax.set_mesh(setup.mesh), contextlib.ExitStack() as cleanup:
        workdir, checkpoints = _open_workdir(config, path, setup, cleanup)
        start = _restore_or_initialize(config, setup, workdir, checkpoints)
        state, step, evaluated = start.state, start.step, start.evaluated
        if results := _finished_results(setup, start, workdir):
            return results
        evaluated = evaluated and step < setup.num_steps  # a kill before results.json repeats the last evaluation
        lowered = setup.program.lower()  # a model that does not match the task fails here, before anything is written
        stop.check()
        environment = describe_environment(setup.train_source, start.license, setup.teacher_record)
        writer = _open_writer(config, setup, workdir, start, environment, cleanup)
        log = StepLog(
            writer,
            jax.jit(setup.program.init_metrics, out_shardings=distributed.replicated(setup.mesh))(),
            batch_size=config.batch_size,
            steps_per_epoch=setup.program.steps_per_epoch,
            every=config.log_every_steps,
            started=started - start.seconds,
        )
        metrics = log.fresh
        trace = StepTrace(
            workdir / "profile",
            config.profile.start_step if distributed.is_first() else None,
            config.profile.num_steps,
        )
        cleanup.callback(trace.close)

        def save(score: float | None = None) -> None:
            progress = {"seconds": log.stamp(step)["seconds"], "evaluated": evaluated}
            blocked = checkpoints.save(state, {**progress, "config": nest(config.values), **environment}, score)
            writer.saved(log.stamp(step) | {"blocked_seconds": blocked})

        try:
            run_step = CompiledSteps(setup.program, lowered, stop)
            evaluator = Evaluator(config, setup.task, setup.model, mesh=setup.mesh, stop=stop)
            host_batches = training_batches(config, setup.task, setup.model, setup.train_source, start_step=step)
            cleanup.callback(host_batches.close)
            sharding = distributed.batch_sharding(setup.mesh)
            batches = log.timed(distributed.prefetch(host_batches, sharding, host_keys=["skipped"]))
            while True:
                if setup.evaluates_at(step) and not evaluated:
                    metrics = log.flush(step, metrics)
                    scored = _evaluate(evaluator, setup.validation, state, workdir, writer, log.stamp(step))
                    evaluated = True
                    save(scored.scores[state.best_weights][setup.task.metrics[0].key])
                    log.restart()
                if step == setup.num_steps:
                    break
                stop.check()
                checkpoints.check()
                trace.before(step)
                batch = next(batches)
                state, metrics = run_step(state, metrics, batch, start.step_key, start.teacher)
                step, evaluated = step + 1, False
                metrics = log.after_step(step, metrics)
                if setup.saves_at(step):
                    metrics = log.flush(step, metrics)
                    save()
        except (StoppedError, DataError, MachineError) as error:
            # After an error of the data pipeline the finished steps are saved too, except with several hosts, because
            # the others wait inside a step and cannot take part in a save.
            if step > start.step and (isinstance(error, StoppedError) or jax.process_count() == 1):
                metrics = log.flush(step, metrics)
                save()
            _raise_stop(error, stop, saved=step > 0)
            raise
    return _finish(evaluator.describe(setup.validation), scored, setup.num_steps, log.stamp(step), workdir)


class _Setup(NamedTuple):
    """The task, data, model, mesh, teacher and training program of a run."""

    config: RunConfig
    task: Task
    train_source: Source
    validation: Source
    model: Model
    mesh: jax.sharding.Mesh
    teacher: Teacher | None
    program: TrainingProgram

    @property
    def num_steps(self) -> int:
        return self.config.total_steps(self.program.steps_per_epoch)

    @property
    def teacher_record(self) -> dict[str, str]:
        """The entries of environment.json that identify the teacher; empty without one."""
        return {} if self.teacher is None else self.teacher.record

    def evaluates_at(self, step: int) -> bool:
        every = self.config.eval_every_epochs * self.program.steps_per_epoch
        return step == self.num_steps or (step > 0 and step % every == 0)

    def saves_at(self, step: int) -> bool:
        """Return whether a checkpoint is due; evaluations save their own."""
        every = self.config.save_every_steps
        return bool(every) and step % every == 0 and not self.evaluates_at(step)


def _prepare(config: RunConfig, path: epath.PathLike) -> _Setup:
    """Build what is trained; checks all of the config that does not depend on the state of the workdir."""
    workdir = open_workdir(path, to_write=True)  # fails on an invalid path before the dataset is opened
    task = config.build_task()
    mesh = distributed.make_mesh(config.fsdp)
    check_batches(config, task, mesh.size)
    check_writers(config.metric_writers)
    task.check()
    train_source = open_split(config, task, config.data.train_split)
    validation = open_split(config, task, config.data.validation_split)
    model = task.build_model(train_source.labels)
    example = task.train_transform(model, train_source).empty()
    task.eval_transform(model, validation)  # fails on invalid options now, not at the first evaluation
    teacher = load_teacher(task, model, train_source.labels)
    program = training_program(
        config, task, model, example, len(train_source), mesh, None if teacher is None else teacher.model
    )
    if config.init_from is not None and not has_checkpoints(workdir):
        _load_pretrained(config, model)  # an error of the user, found before anything is written
    return _Setup(config, task, train_source, validation, model, mesh, teacher, program)


def _load_pretrained(config: RunConfig, model: Model) -> Pretrained:
    return load_pretrained_for(config.init_from, model, head_task=config.task if config.init_head == "keep" else None)


def _put_teacher(setup: _Setup) -> dict[str, Any] | None:
    """Transfer the weights of the teacher to the devices, sharded like the trained ones."""
    if setup.teacher is None:
        return None
    return distributed.put_global(setup.teacher.variables, distributed.shardings(setup.program.teacher))


def _open_workdir(
    config: RunConfig, path: epath.PathLike, setup: _Setup, cleanup: contextlib.ExitStack
) -> tuple[epath.Path, Checkpoints]:
    teacher = {} if setup.teacher is None else {"the weights of the teacher": setup.teacher.fingerprint}
    distributed.assert_same_on_all_hosts(describe_program(config) | teacher)
    workdir = claim_workdir(path, config)
    if config.profile.start_step is not None and is_remote(workdir):
        raise RunError("config.profile.start_step is set; a trace requires a local --workdir")
    if distributed.is_first():
        cleanup.enter_context(lock_workdir(workdir))
    checkpoints = Checkpoints(workdir / "checkpoints", setup.task.metrics[0])
    cleanup.callback(checkpoints.close)
    state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(setup.program.state))
    # At most four exist at a time: the latest two, the best, and the one being written.
    check_space(workdir, state_bytes * max(4 - len(checkpoints.steps()), 1))
    return workdir, checkpoints


class _Start(NamedTuple):
    """The initial or restored state of a run.

    Args:
        seconds: training time before the restart.
        step_key: the key that each step folds with its number.
        teacher: the weights of the teacher on the devices, None without one.
        description: the origin of the weights; empty for a random initialization.
        license: name of the license of the weights that the run started from, if known.
    """

    state: TrainState
    step: int
    evaluated: bool
    seconds: float
    step_key: jax.Array
    teacher: dict[str, Any] | None
    description: str
    license: str | None


def _restore_or_initialize(config: RunConfig, setup: _Setup, workdir: epath.Path, checkpoints: Checkpoints) -> _Start:
    placed = distributed.shardings(setup.program.state)
    init_key, step_key = jax.jit(
        lambda: tuple(jax.random.split(jax.random.key(config.seed))), out_shardings=distributed.replicated(setup.mesh)
    )()
    restored = checkpoints.restore_state(
        setup.program.state, metadata=("fingerprint", "dataset", "seconds", "evaluated")
    )
    if restored is not None:
        state, metadata = restored
        step = int(state.step)
        if metadata["fingerprint"] != setup.train_source.fingerprint and config.resume != "any":
            raise RunError(
                f"the run was trained on other records of {metadata['dataset']} than those of config.data; to resume "
                "with the new records, add --config.resume=any"
            )
        if config.resume != "any":
            _check_same_teacher(metadata, setup.teacher)
        if step > setup.num_steps:
            raise RunError(
                f"workdir {workdir} is at step {step} but the config trains for {count(setup.num_steps, 'step')}; "
                "increase config.num_epochs (or num_steps), or use another --workdir"
            )
        seconds = metadata["seconds"]
        license, teacher = load_environment(workdir).get("license"), _put_teacher(setup)
        description = f"resumed from step {step}"
        return _Start(state, step, metadata["evaluated"], seconds, step_key, teacher, description, license)
    state = jax.jit(setup.program.init_state, out_shardings=placed)(init_key)
    description, license = "", None
    if config.init_from is not None:
        pretrained = _load_pretrained(config, setup.model)
        license = pretrained.license
        variables, description = merge_pretrained(
            pretrained,
            setup.model,
            state.variables,
            init_head=config.init_head,
            labels=setup.train_source.labels,
        )
        state = jax.jit(with_variables, out_shardings=placed)(state, variables)
    return _Start(state, 0, False, 0.0, step_key, _put_teacher(setup), description, license)


def _check_same_teacher(metadata: dict[str, Any], teacher: Teacher | None) -> None:
    """Check that the teacher has the weights that are recorded in a checkpoint.

    Raises:
        RunError: it has others, for example because its own training continued.
    """
    if metadata.get("teacher_fingerprint") == (None if teacher is None else teacher.fingerprint):
        return
    now = "none" if teacher is None else teacher.description
    raise RunError(
        f"the run was trained with another teacher: it was {metadata.get('teacher', 'none')}, is {now}; use the same "
        "weights (copy the workdir of a teacher that is still in training), or add --config.resume=any to resume with "
        "the new ones"
    )


def _open_writer(
    config: RunConfig,
    setup: _Setup,
    workdir: epath.Path,
    start: _Start,
    environment: dict[str, Any],
    cleanup: contextlib.ExitStack,
) -> MetricWriter | SilentWriter:
    """Open the logs, record the run and print its summary."""
    if not distributed.is_first():
        return SilentWriter()
    record_run(workdir, config, environment)
    program, model = setup.program, setup.model
    writer = MetricWriter(
        workdir,
        num_steps=setup.num_steps,
        first_step=start.step,
        steps_per_epoch=program.steps_per_epoch,
        metrics=setup.task.metrics,
        writers=config.metric_writers,
        config=config.values,
    )
    cleanup.callback(writer.close)
    (workdir / "results.json").unlink(missing_ok=True)
    changes = "".join(f", {option} {value}" for option, value in model_args(model).items())
    batch = describe_batch(config.batch_size, setup.mesh.size, program.grad_accum_steps)
    teacher = "" if setup.teacher is None else f"teacher: {setup.teacher.description}{setup.teacher.other_size}"
    writer.print_line(
        f"{model.name}{changes}, {count(model.num_params, 'parameter')}, on {setup.mesh.size} x "
        f"{jax.devices()[0].device_kind}; {count(len(setup.train_source), 'training image')} and "
        f"{count(len(setup.validation), 'validation image')} of {setup.train_source.name}; "
        f"{_describe_length(config, program)}; "
        f"{'; '.join(filter(None, (batch, start.description, teacher)))}"
    )
    if notice := license_notice(start.license, model.name):
        writer.print_line(notice)
    if setup.teacher and (notice := license_notice(setup.teacher.license, setup.teacher.model.name)):
        writer.print_line(notice)
    for sentence in differences_from_recipe(model.family.recipe_of(model.name), config.all_values):
        writer.print_line(f"differs from the published recipe: {sentence}")
    return writer


def _describe_length(config: RunConfig, program: TrainingProgram) -> str:
    of_epoch = count(program.steps_per_epoch, "step")
    if config.num_steps is not None:
        return f"{count(config.num_steps, 'step')}, {of_epoch} an epoch"
    return f"{count(config.num_epochs, 'epoch')} of {of_epoch}"


def _finished_results(setup: _Setup, start: _Start, workdir: epath.Path) -> dict[str, Any] | None:
    """Return the results of a finished run, with a message.

    None if the run has not finished, results.json is missing or damaged, or the config has changed; then the weights
    are evaluated again.
    """
    if start.step < setup.num_steps or not start.evaluated:
        return None
    recorded = load_config(workdir).values
    if any(recorded.get(name, value) != value for name, value in setup.config.values.items()):
        return None
    try:
        results = json.loads((workdir / "results.json").read_text())
    except (OSError, ValueError) as error:
        raise_machine_fault(error, workdir)
        return None
    if not isinstance(results, dict) or not {"task", "unlabeled"} <= results.keys():
        return None
    if distributed.is_first():
        again = "to train again, use another --workdir"
        print(f"Nothing to train: the run has finished all {count(setup.num_steps, 'step')}; {again}.", file=sys.stderr)
    return results


def _evaluate(
    evaluator: Evaluator,
    validation: Source,
    state: TrainState,
    workdir: epath.Path,
    writer: MetricWriter | SilentWriter,
    stamp: dict[str, float],
) -> Evaluation:
    """Evaluate the weights of a state, and write scores and predictions.

    Raises:
        DivergedError: a loss is not finite.
    """
    scored = evaluator(validation, state.weights, predict=state.best_weights)
    writer.exclude(evaluator.compile_seconds)
    for weights, scores in scored.scores.items():
        if not math.isfinite(scores.get("loss", 0.0)):
            raise DivergedError(
                f"the loss of the {weights} weights on {validation.split!r} is {scores['loss']} at step "
                f"{stamp['step']}; use a lower config.optim.learning_rate"
            )
    writer.evaluation(stamp | scored.scores | {"skipped": scored.skipped}, evaluator.describe_input(validation))
    if scored.predictions is not None and distributed.is_first():
        fingerprint = {"fingerprint": np.array(validation.fingerprint)}
        write_arrays(workdir / "predictions.npz", scored.predictions | fingerprint)
    return scored


def _raise_stop(error: Exception, stop: StopSignals, *, saved: bool) -> None:
    """Raise an error about the received signal, if any, instead of the error that it caused in the data pipeline.

    Schedulers signal the whole process group, which ends the data workers too.

    Args:
        saved: whether the run has a state to resume from.
    """
    if not isinstance(error, StoppedError):
        if not stop.received:
            return
        if jax.process_count() > 1:
            lost = f"stopped by {stop.received}, which ended the data workers of this process"
            raise distributed.LostProcessError(lost) from error
    raise StoppedError(f"stopped by {stop.received}", saved=saved) from error


def _finish(
    evaluated: dict[str, Any], scored: Evaluation, num_steps: int, stamp: dict[str, float], workdir: epath.Path
) -> dict[str, Any]:
    """Write results.json of a finished run, and return its content."""
    results = {
        **evaluated,
        **scored.scores,
        "skipped": scored.skipped,
        "unlabeled": scored.unlabeled,
        "steps": num_steps,
        "train_seconds": stamp["seconds"],
    }
    if distributed.is_first():
        write_atomically(workdir / "results.json", json.dumps(results, indent=2) + "\n")
    return results
