"""The run, from a config to trained weights, as one story."""

import json
import time
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from mambaout_jax import parallel
from mambaout_jax.data import ImageSource, TrainTransform, open_source, train_batches
from mambaout_jax.models import Model
from mambaout_jax.train.checkpoint import Checkpoints
from mambaout_jax.train.config import check_config
from mambaout_jax.train.errors import DivergedError, RunError, StoppedError
from mambaout_jax.train.evaluate import Evaluator
from mambaout_jax.train.metrics import MetricWriter
from mambaout_jax.train.mixing import Augmentation
from mambaout_jax.train.optim import adamw, warmup_cosine
from mambaout_jax.train.report import write_report
from mambaout_jax.train.signals import StopSignals
from mambaout_jax.train.state import Progress, init_progress, init_state
from mambaout_jax.train.step import make_train_step
from mambaout_jax.train.workdir import build_model, check_space, claim_workdir, save_environment, write_atomically


def train(config: ConfigDict, path: epath.PathLike) -> dict[str, Any]:
    """Train as the config says, or go on where the workdir's last run stopped.

    Returns:
        What results.json holds.

    Raises:
        RunError, DataError, ModelError: the config, the workdir, the dataset or the model does not fit.
        DivergedError: a loss or gradient was not finite.
        StoppedError: a signal came; the state is saved.
    """
    started = time.monotonic()
    check_config(config)

    # What is trained on what.
    train_source = open_source(config.data.name, config.data.train_split, config.data.data_dir)
    validation_source = open_source(config.data.name, config.data.validation_split, config.data.data_dir)
    class_names = train_source.class_names
    model = build_model(config, len(class_names))
    mesh = parallel.make_mesh()
    sharding, replicated = parallel.batch_sharding(mesh), parallel.replicated(mesh)
    steps_per_epoch = len(train_source) // config.batch_size
    _check_sizes(config, train_source, mesh.size)
    num_steps = config.num_epochs * steps_per_epoch
    eval_every = config.eval_every_epochs * steps_per_epoch

    # How a step computes.
    optim = config.optim
    schedule = warmup_cosine(
        learning_rate=optim.learning_rate,
        warmup_learning_rate=optim.warmup_learning_rate,
        min_learning_rate=optim.min_learning_rate,
        warmup_epochs=optim.warmup_epochs,
        cooldown_epochs=optim.cooldown_epochs,
        num_epochs=config.num_epochs,
        steps_per_epoch=steps_per_epoch,
        per_epoch=optim.schedule == "per_epoch",
    )
    optimizer = adamw(
        schedule,
        weight_decay=optim.weight_decay,
        b1=optim.b1,
        b2=optim.b2,
        eps=optim.eps,
        clip_grad_norm=optim.clip_grad_norm,
        no_decay=model.no_decay,
    )
    train_step = make_train_step(
        model,
        optimizer,
        schedule,
        Augmentation(**config.augment),
        accumulation_steps=optim.accumulation_steps,
        ema_decay=optim.ema_decay,
    )
    init_key, step_key = jax.random.split(jax.random.key(config.seed))

    def draw_state(key: jax.Array):
        return init_state(model, optimizer, key, ema=optim.ema_decay is not None)

    abstract_state = _placed(jax.eval_shape(draw_state, init_key), replicated)

    # Where it is kept. From here on a mistake of the user's has been told; what fails now is a failure.
    workdir = claim_workdir(path, config)
    check_space(workdir, sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract_state)))
    environment = save_environment(workdir, train_source.name, train_source.fingerprint, class_names)

    with StopSignals() as stop, jax.set_mesh(mesh):
        checkpoints = Checkpoints(workdir / "checkpoints")
        restored = checkpoints.restore_state(abstract_state)
        if restored is None:
            state = stop.interruptible(lambda: jax.jit(draw_state, out_shardings=replicated)(init_key))
            metadata = {"seconds": 0.0, "evaluated": False}
        else:
            state, metadata = restored
            if metadata["fingerprint"] != train_source.fingerprint and config.resume != "any":
                raise RunError(
                    f"workdir {workdir} was trained on {metadata['dataset']} with other records than those that "
                    f"{config.data.name} has now; go on with these by --config.resume=any"
                )
        step, evaluated = int(state.step), bool(metadata["evaluated"])
        started -= metadata["seconds"]
        writer = MetricWriter(workdir, num_steps=num_steps, first_step=step, steps_per_epoch=steps_per_epoch)
        writer.say(_opening(model, train_source, validation_source, abstract_state, config, step, num_steps, mesh.size))

        evaluator = Evaluator(
            model,
            validation_source,
            batch_size=config.eval_batch_size,
            num_workers=config.data.num_workers,
            bad_records=config.data.bad_records,
            sharding=sharding,
            stop=stop,
        )

        def save(top1: float | None = None) -> None:
            checkpoints.save(
                state,
                {
                    "seconds": time.monotonic() - started,
                    "evaluated": evaluated,
                    "config": config.to_dict(),
                    **environment,
                },
                top1,
            )

        try:
            # One compile each for training and evaluation, ahead of time, so that shapes cannot drift later.
            progress = jax.device_put(init_progress(), replicated)
            batch_shape = (config.batch_size, *model.input_spec.size, model.in_chans)
            abstract_batch = {
                "image": jax.ShapeDtypeStruct(batch_shape, np.uint8, sharding=sharding),
                "label": jax.ShapeDtypeStruct(batch_shape[:1], np.int32, sharding=sharding),
            }
            step_key = jax.device_put(step_key, replicated)
            lowered = jax.jit(train_step, donate_argnums=0, out_shardings=replicated).lower(
                abstract_state, _placed(jax.eval_shape(init_progress), replicated), abstract_batch, step_key
            )
            run_step = stop.interruptible(lowered.compile)
            fresh_progress = progress

            batches = _Waited(
                train_batches(
                    train_source,
                    TrainTransform(
                        size=model.input_spec.size,
                        channels=model.in_chans,
                        crop=config.data.crop,
                        scale=config.data.crop_scale,
                        ratio=config.data.crop_ratio,
                        flip=config.data.flip_rate,
                        interpolation=config.data.interpolation,
                    ),
                    batch_size=config.batch_size,
                    steps_per_epoch=steps_per_epoch,
                    seed=config.seed,
                    start_step=step,
                    num_workers=config.data.num_workers,
                    bad_records=config.data.bad_records,
                )
            )
            device_batches = parallel.prefetch(batches, sharding)
            log = _Log(writer, schedule, config.batch_size, steps_per_epoch, batches, started)

            while True:
                due = step == num_steps or (step > 0 and step % eval_every == 0)
                if due and not evaluated:
                    log.settle()
                    weights = {"raw": state.variables} | ({} if state.ema is None else {"ema": state.ema})
                    best = "raw" if state.ema is None else "ema"
                    scores, predictions = evaluator(weights, predict=best)
                    evaluated = True
                    writer.evaluation(log.stamp(step) | scores)
                    predictions.save(workdir / "predictions.npz")
                    save(scores[best]["top1"])
                    log.restart()
                if step == num_steps:
                    break
                batch = next(device_batches)
                with jax.transfer_guard("disallow"), _trace(config, workdir, step):
                    state, progress = run_step(state, progress, batch, step_key)
                step, evaluated = step + 1, False
                writer.advance()
                log.settle()
                if step % config.log_every_steps == 0:
                    log.hold(step, progress)
                    progress = fresh_progress
                if config.save_every_steps and step % config.save_every_steps == 0:
                    log.hold(step, progress)
                    log.settle()
                    progress = fresh_progress
                    save()
                stop.check()
        except StoppedError:
            save()
            raise
        finally:
            checkpoints.close()
            writer.close()

    results = {
        **scores,
        "steps": num_steps,
        "train_seconds": time.monotonic() - started,
        "input_size": list(model.input_spec.size),
    }
    write_atomically(workdir / "results.json", json.dumps(results, indent=2) + "\n")
    write_report(workdir)
    return results
