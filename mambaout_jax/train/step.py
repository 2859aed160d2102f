"""The training step as a pure function."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from mambaout_jax import distributed
from mambaout_jax.models import Model
from mambaout_jax.run.state import TrainState
from mambaout_jax.tasks.api import Batch, LossTerm, Task
from mambaout_jax.tasks.errors import TaskError
from mambaout_jax.train.optimizer import Schedule, update_ema

Denominators = Mapping[str, Any]
TrainLoss = Callable[[dict[str, Any], Batch, Key[Array, ""]], tuple[Mapping[str, LossTerm], Any]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepMetrics:
    """Sums over the steps since the last record, kept on the device so that no step waits for the host.

    Args:
        steps: number of steps.
        loss: sum of the losses.
        loss_terms: sums of the terms by name; empty for a loss with one term.
        learning_rate, grad_norm: values of the last step.
        first_nonfinite_step: the first step with a loss or gradient that is not finite, or -1.
        nonfinite_learning_rate, nonfinite_loss, nonfinite_grad_norm: values of that step.
    """

    steps: Int[Array, ""]
    loss: Float[Array, ""]
    loss_terms: dict[str, Float[Array, ""]]
    learning_rate: Float[Array, ""]
    grad_norm: Float[Array, ""]
    first_nonfinite_step: Int[Array, ""]
    nonfinite_learning_rate: Float[Array, ""]
    nonfinite_loss: Float[Array, ""]
    nonfinite_grad_norm: Float[Array, ""]


def init_step_metrics(loss_terms: tuple[str, ...] = ()) -> StepMetrics:
    """Return the metrics of zero steps.

    Args:
        loss_terms: names of the terms of the loss.
    """
    zero, none = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32)
    terms = dict.fromkeys(loss_terms, zero) if len(loss_terms) > 1 else {}
    return StepMetrics(none, zero, terms, zero, zero, none - 1, zero, zero, zero)


def make_train_step(
    task: Task,
    model: Model,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    *,
    grad_accum_steps: int,
    ema_decay: float | None,
    distillation_step: int | None = None,
    teacher: Model | None = None,
) -> Callable[..., tuple[TrainState, StepMetrics]]:
    """Build the function (state, metrics, batch, key, teacher_variables=None) -> (state, metrics).

    The batch is that of the data pipeline. The key is the same for all steps and is folded with the step.

    Args:
        grad_accum_steps: number of microbatches per batch.
        distillation_step: first step that computes the `ema_targets` of the task; None if it has no distillation.
        teacher: model of the `teacher_targets` of the task; None if it has no teacher.
    """

    def train_loss(
        state: TrainState,
        teacher_variables: dict[str, Any] | None,
        variables: dict[str, Any],
        batch: Batch,
        key: Key[Array, ""],
    ) -> tuple[Mapping[str, LossTerm], Any]:
        if teacher is not None:
            targets = task.teacher_targets(teacher, _replicate_params(teacher_variables), model, batch)
            batch = {**batch, "teacher_targets": targets}
        if distillation_step is not None:
            batch = {
                **batch,
                "ema_targets": _ema_targets(task, model, state.ema, batch, state.step < distillation_step),
            }
        terms, batch_stats = task.train_loss(model, _replicate_params(variables), batch, key)
        if terms.keys() != set(task.loss_terms):
            raise TaskError(
                f"task {task.name!r} returned the loss terms {sorted(terms)}; expected its loss_terms {task.loss_terms}"
            )
        return terms, batch_stats

    def train_step(
        state: TrainState,
        metrics: StepMetrics,
        batch: Batch,
        key: Key[Array, ""],
        teacher_variables: dict[str, Any] | None = None,
    ) -> tuple[TrainState, StepMetrics]:
        prepare_key, loss_key = jax.random.split(jax.random.fold_in(key, state.step))
        batch = task.prepare_batch(model, batch, prepare_key)
        gradient, loss, terms, batch_stats = _gradient(
            partial(train_loss, state, teacher_variables), state.variables, batch, loss_key, grad_accum_steps
        )
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.variables["params"])
        variables = {
            "params": optax.apply_updates(state.variables["params"], updates),
            "batch_stats": batch_stats,
        }
        metrics = _accumulate(metrics, state.step, loss, terms, optax.tree.norm(gradient), schedule(state.step))
        ema = None if ema_decay is None else update_ema(state.ema, variables, ema_decay, state.step)
        return TrainState(state.step + 1, variables, ema, opt_state), metrics

    return train_step


def _replicate_params(variables: dict[str, Any]) -> dict[str, Any]:
    return {**variables, "params": distributed.replicate(variables["params"])}


def _ema_targets(task: Task, model: Model, ema: Any, batch: Batch, early: Array) -> Any:
    """Compute the targets that a task derives from the moving average of the weights; zeros if `early`."""

    def compute(batch: Batch) -> Any:
        return task.ema_targets(model, _replicate_params(ema), batch)

    def zeros(batch: Batch) -> Any:
        return jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), jax.eval_shape(compute, batch))

    # The function for a false condition is branch 0 of the program, the only one that `plan` counts; hence `early`.
    return jax.lax.cond(early, zeros, compute, batch)


def _gradient(
    train_loss: TrainLoss, variables: dict[str, Any], batch: Batch, key: Key[Array, ""], grad_accum_steps: int
) -> tuple[Any, Array, dict[str, Array], Any]:
    """Compute the gradient of a batch, its loss, the terms of the loss and the updated batch statistics.

    The loss is the sum over terms of numerator / denominator, each summed over all microbatches and devices first.
    Under jit, sums over a batch are sums over all devices.
    """

    def loss_fn(params: Any, batch_stats: Any, batch: Batch, key: Key[Array, ""], denominators: Denominators | None):
        terms, batch_stats = train_loss({"params": params, "batch_stats": batch_stats}, batch, key)
        if denominators is None:
            denominators = {name: _as_divisor(term.denominator) for name, term in terms.items()}
        values = {name: term.numerator / denominators[name] for name, term in terms.items()}
        return sum(values.values()), (values, batch_stats)

    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    params, batch_stats = variables["params"], variables["batch_stats"]
    if grad_accum_steps == 1:
        (loss, (terms, batch_stats)), gradient = grad_fn(params, batch_stats, batch, key, None)
        return gradient, loss, terms, batch_stats

    # Microbatch i has the rows i, i + n, ..., so that rows stay on their device.
    def split(x: Array) -> Array:
        return x.reshape(-1, grad_accum_steps, *x.shape[1:]).swapaxes(0, 1)

    microbatches = jax.tree.map(split, batch), jax.random.split(key, grad_accum_steps)

    def terms_of(batch: Batch, key: Key[Array, ""]) -> Mapping[str, LossTerm]:
        return train_loss(variables, batch, key)[0]

    denominators = _sum_denominators(terms_of, microbatches, grad_accum_steps)

    def body(carry: Any, microbatch: Any) -> tuple[Any, None]:
        gradient, loss, terms, batch_stats = carry
        (more_loss, (more_terms, batch_stats)), more_gradient = grad_fn(params, batch_stats, *microbatch, denominators)
        gradient, loss, terms = jax.tree.map(jnp.add, (gradient, loss, terms), (more_gradient, more_loss, more_terms))
        return (gradient, loss, terms, batch_stats), None

    zero = jnp.zeros((), jnp.float32)
    start = (jax.tree.map(jnp.zeros_like, params), zero, dict.fromkeys(denominators, zero), batch_stats)
    (gradient, loss, terms, batch_stats), _ = jax.lax.scan(body, start, microbatches)
    return gradient, loss, terms, batch_stats


def _sum_denominators(
    loss_terms: Callable[[Batch, Key[Array, ""]], Mapping[str, LossTerm]], microbatches: Any, grad_accum_steps: int
) -> Denominators:
    """Compute the sums of the denominators over microbatches, before the first gradient.

    Plain numbers need no pass over the batch. For arrays, the terms are computed with the keys of the gradient and the
    batch statistics before the step; the compiler removes everything that the denominators do not depend on, which is
    the whole model if they depend only on targets.
    """
    numbers: dict[str, float] = {}

    def denominators(batch: Batch, key: Key[Array, ""]) -> dict[str, Array]:
        found = {name: term.denominator for name, term in loss_terms(batch, key).items()}
        arrays = {name: value for name, value in found.items() if isinstance(value, jax.Array)}
        # Plain numbers are the same in every trace, so they can be returned as a side effect of tracing.
        numbers.update({name: value for name, value in found.items() if name not in arrays})
        return arrays

    first = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), microbatches)
    shapes = jax.eval_shape(denominators, *first)
    totals: dict[str, Any] = {name: value * grad_accum_steps for name, value in numbers.items()}
    if shapes:

        def body(total: dict[str, Array], microbatch: Any) -> tuple[dict[str, Array], None]:
            return jax.tree.map(jnp.add, total, denominators(*microbatch)), None

        zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
        totals |= jax.lax.scan(body, zeros, microbatches)[0]
    return {name: _as_divisor(total) for name, total in totals.items()}


def _as_divisor(denominator: Array | float) -> Array | float:
    """Return the denominator without its gradient, and 1 instead of 0, so that a term without elements is 0 / 1."""
    if isinstance(denominator, jax.Array):
        return jax.lax.stop_gradient(jnp.where(denominator == 0, jnp.ones_like(denominator), denominator))
    return denominator or 1


def _accumulate(
    metrics: StepMetrics, step: Array, loss: Array, terms: Mapping[str, Array], grad_norm: Array, learning_rate: Array
) -> StepMetrics:
    """Return the metrics with one more step."""
    nonfinite = ~(jnp.isfinite(loss) & jnp.isfinite(grad_norm)) & (metrics.first_nonfinite_step < 0)
    return StepMetrics(
        steps=metrics.steps + 1,
        loss=metrics.loss + loss,
        loss_terms={name: total + terms[name] for name, total in metrics.loss_terms.items()},
        learning_rate=learning_rate,
        grad_norm=grad_norm,
        first_nonfinite_step=jnp.where(nonfinite, step, metrics.first_nonfinite_step),
        nonfinite_learning_rate=jnp.where(nonfinite, learning_rate, metrics.nonfinite_learning_rate),
        nonfinite_loss=jnp.where(nonfinite, loss, metrics.nonfinite_loss),
        nonfinite_grad_norm=jnp.where(nonfinite, grad_norm, metrics.nonfinite_grad_norm),
    )
