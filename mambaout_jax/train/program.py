"""The training program of a config up to its compilation, shared by runs, plans and studies."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from mambaout_jax import distributed
from mambaout_jax.models import Model
from mambaout_jax.run.batch import check_eval_batch, grad_accum_steps
from mambaout_jax.run.config import RunConfig
from mambaout_jax.run.signals import StopSignals
from mambaout_jax.run.state import TrainState, init_state
from mambaout_jax.tasks.api import Example, Task
from mambaout_jax.train.inputs import steps_per_epoch
from mambaout_jax.train.layer_decay import layer_scales, scale_by_layer
from mambaout_jax.train.optimizer import (
    DECAY_MASKS,
    OPTIMIZERS,
    Schedule,
    warmup_cosine,
    warmup_linear,
    warmup_multistep,
)
from mambaout_jax.train.step import StepMetrics, init_step_metrics, make_train_step


class TrainingProgram(NamedTuple):
    """The step function with the shapes of its arguments.

    Args:
        steps_per_epoch: full batches per epoch.
        grad_accum_steps: microbatches per batch.
        init_state: returns the initial state for a key.
        init_metrics: returns the step metrics of zero steps.
        step: the function that `make_train_step` returns.
        state, batch, teacher: shapes, dtypes and shardings of its arguments; without a teacher, the last one is None.
    """

    steps_per_epoch: int
    grad_accum_steps: int
    init_state: Callable[[jax.Array], TrainState]
    init_metrics: Callable[[], StepMetrics]
    step: Callable[..., Any]
    state: TrainState
    batch: dict[str, Any]
    teacher: dict[str, Any] | None

    def lower(self, batch: dict[str, Any] | None = None) -> jax.stages.Lowered:
        """Return the lowered step for the current mesh, ready to compile.

        Args:
            batch: shapes, dtypes and shardings of a batch; None for those of the first ones.
        """
        replicated = self.state.step.sharding
        metrics = distributed.sharded_shapes(self.init_metrics, sharding=replicated)
        key = distributed.sharded_shapes(lambda: jax.random.key(0), sharding=replicated)
        step = jax.jit(self.step, donate_argnums=0, out_shardings=(distributed.shardings(self.state), replicated))
        return step.lower(self.state, metrics, batch or self.batch, key, self.teacher)


class CompiledSteps:
    """The compiled training step for each shape of batches: images of two orientations, for example, have two.

    Args:
        lowered: for the first shape, which is compiled at once.
    """

    def __init__(self, program: TrainingProgram, lowered: jax.stages.Lowered, stop: StopSignals):
        self._program, self._stop = program, stop
        self._steps = {_shapes_of(program.batch): self._compile(lowered)}

    def __call__(self, state: TrainState, metrics: StepMetrics, batch: dict[str, Any], *others: Any) -> Any:
        """Compute a step, without implicit transfers to or from the devices.

        Args:
            others: further arguments of the step.

        Raises:
            StoppedError: the process received a signal during a compilation.
        """
        step = self._step_for(batch)
        with jax.transfer_guard("disallow"):
            return step(state, metrics, batch, *others)

    def _compile(self, lowered: jax.stages.Lowered) -> Callable[..., Any]:
        return self._stop.interruptible(lowered.compile, "Compiling the training step.")

    def _step_for(self, batch: dict[str, Any]) -> Callable[..., Any]:
        shapes = _shapes_of(batch)
        if shapes not in self._steps:
            abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), batch)
            self._steps[shapes] = self._compile(self._program.lower(abstract))
        return self._steps[shapes]


def _shapes_of(batch: dict[str, Any]) -> tuple[tuple[int, ...], ...]:
    return tuple(leaf.shape for leaf in jax.tree.leaves(batch))


def training_program(
    config: RunConfig,
    task: Task,
    model: Model,
    example: Example,
    num_images: int,
    mesh: jax.sharding.Mesh,
    teacher: Model | None = None,
) -> TrainingProgram:
    """Build the training program of a config.

    Args:
        example: an example of the training transform.
        num_images: images of the training split.
        teacher: the model that `load_teacher` returns.

    Raises:
        RunError: the batch is larger than the dataset, or cannot be split over the devices.
    """
    accum_steps = check_batches(config, task, mesh.size)
    epoch_steps = steps_per_epoch(config, num_images)
    schedule, optimizer = build_optimizer(config, model, epoch_steps)

    def initial_state(key: jax.Array) -> TrainState:
        return init_state(model, optimizer, key, ema=config.optim.ema_decay is not None)

    distillation = task.distillation()
    num_steps = config.total_steps(epoch_steps)
    return TrainingProgram(
        epoch_steps,
        accum_steps,
        initial_state,
        lambda: init_step_metrics(task.loss_terms),
        make_train_step(
            task,
            model,
            optimizer,
            schedule,
            grad_accum_steps=accum_steps,
            ema_decay=config.optim.ema_decay,
            distillation_step=None if distillation is None else round(distillation.start * num_steps),
            teacher=teacher,
        ),
        distributed.sharded_shapes(initial_state, jax.random.key(0), sharding=mesh),
        distributed.batch_shapes(example, config.batch_size, mesh),
        None if teacher is None else distributed.sharded_shapes(teacher.init, jax.random.key(0), sharding=mesh),
    )


def check_batches(config: RunConfig, task: Task, num_devices: int) -> int:
    """Return the number of microbatches per batch.

    Raises:
        RunError: a training or evaluation batch cannot be split evenly over the devices.
    """
    check_eval_batch(config.eval_batch_size, num_devices)
    return grad_accum_steps(config.batch_size, num_devices, config.microbatch_size, task.row_group())


def build_optimizer(
    config: RunConfig, model: Model, steps_per_epoch: int
) -> tuple[Schedule, optax.GradientTransformation]:
    """Build the schedule and the optimizer of a config."""
    optim = config.optim
    if optim.schedule == "linear":
        schedule = warmup_linear(
            learning_rate=optim.learning_rate,
            warmup_learning_rate=optim.warmup_learning_rate,
            min_learning_rate=optim.min_learning_rate,
            warmup_steps=optim.warmup_steps,
            num_steps=config.total_steps(steps_per_epoch),
        )
    elif optim.schedule == "drops":
        schedule = warmup_multistep(
            learning_rate=optim.learning_rate,
            steps_per_epoch=steps_per_epoch,
            drop_epochs=optim.drop_epochs or (),
            warmup_learning_rate=optim.warmup_learning_rate,
            warmup_steps=optim.warmup_steps,
        )
    else:
        schedule = _cosine(config, steps_per_epoch)
    optimizer = OPTIMIZERS[optim.name](
        schedule,
        weight_decay=optim.weight_decay,
        b1=optim.b1,
        b2=optim.b2,
        eps=optim.eps,
        clip_grad_norm=optim.clip_grad_norm,
        mask=DECAY_MASKS[optim.decay_of](model.no_decay),
    )
    if optim.layer_decay is not None:
        optimizer = optax.chain(optimizer, scale_by_layer(layer_scales(model, optim.layer_decay)))
    return schedule, optimizer


def _cosine(config: RunConfig, steps_per_epoch: int) -> Schedule:
    optim = config.optim
    return warmup_cosine(
        learning_rate=optim.learning_rate,
        warmup_learning_rate=optim.warmup_learning_rate,
        min_learning_rate=optim.min_learning_rate,
        warmup_epochs=optim.warmup_epochs,
        cooldown_epochs=optim.cooldown_epochs,
        num_epochs=config.num_epochs,
        steps_per_epoch=steps_per_epoch,
        per_epoch=optim.schedule == "per_epoch",
    )
