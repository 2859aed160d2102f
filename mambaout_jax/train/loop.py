"""The run, from a config to trained weights, as one story."""

import contextlib
import json
import time
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from mambaout_jax import distributed
from mambaout_jax.data import DataError, WorkerDiedError, open_source
from mambaout_jax.data.buckets import is_remote
from mambaout_jax.evaluate.evaluation import Evaluator
from mambaout_jax.evaluate.scores import describe_eval_transform
from mambaout_jax.report.html import write_report
from mambaout_jax.run.batch import describe_batch
from mambaout_jax.run.checkpoints import Checkpoints
from mambaout_jax.run.config import check_config, flatten_config
from mambaout_jax.run.errors import RunError, StoppedError
from mambaout_jax.run.files import write_atomically
from mambaout_jax.run.pretrained import load_pretrained_for, merge_pretrained
from mambaout_jax.run.signals import StopSignals
from mambaout_jax.run.state import init_step_metrics, with_variables
from mambaout_jax.run.workdir import (
    build_model,
    check_space,
    claim_workdir,
    describe_environment,
    describe_program,
    lock_workdir,
    record_run,
)
from mambaout_jax.train.inputs import training_batches
from mambaout_jax.train.metrics import MetricWriter, SilentWriter, StepLog
from mambaout_jax.train.program import training_program
from mambaout_jax.train.recipe import departures
from mambaout_jax.train.trace import StepTrace


def train(config: ConfigDict, path: epath.PathLike) -> dict[str, Any]:
    """Train as the config says, or go on where the last run in the workdir stopped.

    Returns:
        What results.json holds.

    Raises:
        RunError, DataError, ModelError: the config, the workdir, the dataset or the model does not fit.
        DivergedError: a loss or gradient was not finite; the last checkpoint is from before.
        StoppedError: a signal came; everything is saved.
    """
    started = time.monotonic()
    check_config(config)

    # What is trained, on what, where.
    source = open_source(config.data.name, config.data.train_split, config.data.data_dir)
    validation = open_source(config.data.name, config.data.validation_split, config.data.data_dir)
    model = build_model(config, len(source.class_names))
    mesh = distributed.make_mesh(config.mesh.fsdp)
    sharding, replicated = distributed.batch_sharding(mesh), distributed.replicated(mesh)

    # How a step computes.
    program = training_program(config, model, len(source), mesh)
    placed = distributed.shardings(program.state)
    epoch_steps = program.epoch_steps
    num_steps = config.num_epochs * epoch_steps
    eval_every = config.eval_every_epochs * epoch_steps
    init_key, step_key = jax.jit(
        lambda: tuple(jax.random.split(jax.random.key(config.seed))), out_shardings=replicated
    )()

    with StopSignals() as stop, jax.set_mesh(mesh), contextlib.ExitStack() as cleanup:
        # Where it is kept, and where it goes on.
        distributed.assert_same_on_all_hosts(describe_program(config))
        workdir = claim_workdir(path, config)
        if config.profile.start_step is not None and is_remote(workdir):
            raise RunError("config.profile.start_step is set; a trace is written to a local --workdir only")
        if distributed.is_first():
            cleanup.enter_context(lock_workdir(workdir))
        checkpoints = Checkpoints(workdir / "checkpoints")
        cleanup.callback(checkpoints.close)
        state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(program.state))
        # Four at a time: the latest two, the best, and one that is being written.
        check_space(workdir, state_bytes * max(4 - len(checkpoints.steps()), 1))
        restored = checkpoints.restore_state(program.state)
        if restored is None:
            state = jax.jit(program.draw_state, out_shardings=placed)(init_key)
            step, evaluated = 0, False
            origin = ""
            if config.init_from is not None:
                variables, origin = merge_pretrained(
                    load_pretrained_for(config.init_from, model),
                    model,
                    state.variables,
                    init_head=config.init_head,
                    class_names=source.class_names,
                )
                state = jax.jit(with_variables, out_shardings=placed)(state, variables)
        else:
            state, metadata = restored
            _check_dataset(config, metadata, source.fingerprint)
            step, evaluated = int(state.step), metadata["evaluated"]
            origin = f"goes on after step {step}"
            started -= metadata["seconds"]
        if step > num_steps:
            raise RunError(f"workdir {workdir} is at step {step}, after the {num_steps} of config.num_epochs")
        first_step = step
        results_file = workdir / "results.json"
        if evaluated and step == num_steps and results_file.exists():
            if distributed.is_first() and not (workdir / "report.html").exists():
                write_report(workdir)
            return json.loads(results_file.read_text())
        evaluated = evaluated and step < num_steps  # killed before its results were written
        environment = describe_environment(source)
        if distributed.is_first():
            results_file.unlink(missing_ok=True)
            record_run(workdir, config, environment)
            writer = MetricWriter(workdir, num_steps=num_steps, first_step=step, steps_per_epoch=epoch_steps)
        else:
            writer = SilentWriter()
        cleanup.callback(writer.close)
        how = describe_batch(config.batch_size, mesh.size, program.parts)
        writer.say(
            f"{model.name}, {model.num_params:,} parameters, on {mesh.size} x {jax.devices()[0].device_kind}; "
            f"{len(source):,} training and {len(validation):,} validation images of {source.name}; "
            f"{config.num_epochs} epochs of {epoch_steps} steps; {'; '.join(filter(None, (how, origin)))}"
        )
        for sentence in departures(model.family.recipe, flatten_config(config)):
            writer.say(f"not the published recipe: {sentence}")
        log = StepLog(
            writer,
            jax.jit(init_step_metrics, out_shardings=replicated)(),
            batch_size=config.batch_size,
            steps_per_epoch=epoch_steps,
            every=config.log_every_steps,
            started=started,
        )
        trace_start = config.profile.start_step if distributed.is_first() else None
        trace = StepTrace(workdir / "profile", trace_start, config.profile.num_steps)
        cleanup.callback(trace.close)

        def due(step: int) -> bool:
            return step == num_steps or (step > 0 and step % eval_every == 0)

        def save(top1: float | None = None) -> None:
            log.flush(step)
            progress = {"seconds": time.monotonic() - started, "evaluated": evaluated}
            blocked = checkpoints.save(state, {**progress, "config": config.to_dict(), **environment}, top1)
            writer.saved(log.stamp(step) | {"blocked_seconds": blocked})

        try:
            # Ahead of time, so that there is one program each for training and for evaluation.
            run_step = stop.interruptible(program.lower().compile)
            evaluator = Evaluator(config, model, validation, sharding=sharding, stop=stop)
            host_batches = training_batches(config, model, source, start_step=step)
            cleanup.callback(host_batches.close)
            batches = distributed.prefetch(log.timed(host_batches), sharding)
            log.restart()
            while True:
                if due(step) and not evaluated:
                    log.flush(step)
                    weights = {"raw": state.variables} | ({} if state.ema is None else {"ema": state.ema})
                    best = list(weights)[-1]
                    scored = evaluator(weights, predict=best)
                    evaluated = True
                    record = log.stamp(step) | scored.scores | {"skipped": scored.skipped}
                    writer.evaluation(record, describe_eval_transform(evaluator.describe()))
                    if scored.predictions is not None and distributed.is_first():
                        scored.predictions.save(workdir / "predictions.npz")
                    save(scored.scores[best]["top1"])
                    log.restart()
                if step == num_steps:
                    break
                stop.check()
                checkpoints.check()
                trace.before(step)
                batch = next(batches)
                with jax.transfer_guard("disallow"):
                    state, log.progress = run_step(state, log.progress, batch, step_key)
                step, evaluated = step + 1, False
                log.stepped(step)
                if config.save_every_steps and step % config.save_every_steps == 0 and not due(step):
                    save()
        except (StoppedError, DataError, WorkerDiedError) as error:
            # A record or a worker that fails takes no finished step with it; but of many hosts the others wait for this
            # one's share of a step, and cannot save with it. A scheduler that signals the whole process group ends the
            # workers too, and reading from them then fails.
            if step > first_step and (isinstance(error, StoppedError) or jax.process_count() == 1):
                save()
            if isinstance(error, StoppedError) or not stop.received:
                raise
            stopped = f"stopped by {stop.received}"
            if jax.process_count() > 1:
                raise distributed.LostProcessError(f"{stopped}, which ended what this process reads with") from error
            raise StoppedError(stopped) from error

    results = {
        **evaluator.describe(),
        **scored.scores,
        "skipped": scored.skipped,
        "unlabelled": scored.unlabelled,
        "steps": num_steps,
        "train_seconds": time.monotonic() - started,
    }
    if distributed.is_first():
        write_atomically(results_file, json.dumps(results, indent=2) + "\n")
        write_report(workdir)
    return results


def _check_dataset(config: ConfigDict, metadata: dict[str, Any], fingerprint: str) -> None:
    if metadata["fingerprint"] != fingerprint and config.resume != "any":
        raise RunError(
            f"the run was trained on other records of {metadata['dataset']} than config.data gives now; go on with "
            "these by --config.resume=any"
        )
