"""The program that a config trains with, up to its compilation: the same for a run and for what plans one."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from mambaout_jax import distributed
from mambaout_jax.models import Model
from mambaout_jax.run.batch import accumulation_steps, check_eval_batch
from mambaout_jax.run.state import TrainState, init_state, init_step_metrics
from mambaout_jax.tasks.classification.mixing import Augmentation
from mambaout_jax.train.inputs import steps_per_epoch
from mambaout_jax.train.optimizer import Schedule, adamw, warmup_cosine
from mambaout_jax.train.step import make_train_step


class TrainingProgram(NamedTuple):
    """Hold how a step computes, and on what.

    Args:
        epoch_steps: whole batches of an epoch.
        parts: that a batch is computed in.
        draw_state: gives the first state of a key.
        state, batch: shapes, types and shardings of what a step takes.
    """

    epoch_steps: int
    parts: int
    draw_state: Callable[[jax.Array], TrainState]
    step: Callable[..., Any]
    state: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]

    def lower(self) -> jax.stages.Lowered:
        """Trace the step for a mesh that was set, and leave its compilation to the caller."""
        replicated = self.state.step.sharding
        progress = distributed.sharded_shapes(init_step_metrics, placed=replicated)
        key = distributed.sharded_shapes(lambda: jax.random.key(0), placed=replicated)
        step = jax.jit(self.step, donate_argnums=0, out_shardings=(distributed.shardings(self.state), replicated))
        return step.lower(self.state, progress, self.batch, key)


def training_program(config: ConfigDict, model: Model, num_images: int, mesh: jax.sharding.Mesh) -> TrainingProgram:
    """Put together what a config trains with.

    Args:
        num_images: of the training split.

    Raises:
        RunError: the batch does not fit the dataset or the devices.
    """
    sharding = distributed.batch_sharding(mesh)
    parts = check_batches(config, mesh.size)
    # timm mixes bytes; what is fast leaves the sums as they are.
    augmentation = Augmentation(**config.augment, round_mixed=config.data.pipeline == "exact")
    epoch_steps = steps_per_epoch(config, num_images)
    schedule, optimizer = build_optimizer(config, model, epoch_steps)

    def draw_state(key: jax.Array) -> TrainState:
        return init_state(model, optimizer, key, ema=config.optim.ema_decay is not None)

    step = make_train_step(
        model,
        optimizer,
        schedule,
        augmentation,
        accumulation_steps=parts,
        ema_decay=config.optim.ema_decay,
    )
    batch_shape = (config.batch_size, *model.input_spec.size, model.in_chans)
    batch = {
        "image": jax.ShapeDtypeStruct(batch_shape, np.uint8, sharding=sharding),
        "label": jax.ShapeDtypeStruct(batch_shape[:1], np.int32, sharding=sharding),
    }
    state = distributed.sharded_shapes(draw_state, jax.random.key(config.seed), placed=mesh)
    return TrainingProgram(epoch_steps, parts, draw_state, step, state, batch)


def check_batches(config: ConfigDict, num_devices: int) -> int:
    """Give in how many parts a batch is computed.

    Raises:
        RunError: devices cannot take equal shares of what is trained on, or evaluated.
    """
    check_eval_batch(config.eval_batch_size, num_devices)
    mixing_group = config.augment.mixup_group if Augmentation(**config.augment).mixes else 1
    return accumulation_steps(config.batch_size, num_devices, config.microbatch_size, mixing_group)


def build_optimizer(
    config: ConfigDict, model: Model, steps_per_epoch: int
) -> tuple[Schedule, optax.GradientTransformation]:
    """Build the schedule and the optimizer that a config describes."""
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
    return schedule, optimizer
