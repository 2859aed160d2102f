"""One training step, as a pure function to be jitted."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from mambaout_jax import distributed
from mambaout_jax.models import Model
from mambaout_jax.run.state import Progress, TrainState
from mambaout_jax.tasks.classification.losses import cross_entropy
from mambaout_jax.tasks.classification.mixing import Augmentation, augment
from mambaout_jax.train.optimizer import Schedule

Batch = dict[str, Array]


def make_train_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    augmentation: Augmentation,
    *,
    accumulation_steps: int,
    ema_decay: float | None,
) -> Callable[[TrainState, Progress, Batch, Key[Array, ""]], tuple[TrainState, Progress]]:
    """Build the function (state, progress, batch, key) -> (state, progress).

    The batch holds uint8 `image` and int32 `label`; `key` is the run's, and is folded with the step.
    """
    spec = model.input_spec

    def loss_fn(params: Any, batch_stats: Any, images: Array, targets: Array, key: Key[Array, ""]):
        variables = {"params": distributed.replicate(params), "batch_stats": batch_stats}
        logits, batch_stats = model.apply_train(variables, images, key=key)
        return cross_entropy(logits, targets).mean(), batch_stats

    def train_step(state: TrainState, progress: Progress, batch: Batch, key: Key[Array, ""]):
        augment_key, model_key = jax.random.split(jax.random.fold_in(key, state.step))
        images, targets = augment(
            batch["image"],
            batch["label"],
            augment_key,
            augmentation,
            num_classes=model.num_classes,
            mean=spec.mean,
            std=spec.std,
        )
        gradient, loss, batch_stats = _accumulate(
            jax.value_and_grad(loss_fn, has_aux=True),
            state.variables,
            images,
            targets,
            model_key,
            accumulation_steps,
        )
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.variables["params"])
        variables = {
            "params": optax.apply_updates(state.variables["params"], updates),
            "batch_stats": batch_stats,
        }
        progress = _accumulate_metrics(progress, state.step, loss, optax.tree.norm(gradient), schedule(state.step))
        ema = None if ema_decay is None else _update_ema(state.ema, variables, ema_decay, state.step)
        return TrainState(state.step + 1, variables, ema, opt_state), progress

    return train_step


def _accumulate(grad_fn, variables, images, targets, key, parts: int):
    """Average loss and gradient over `parts` parts of a batch, one after another.

    Part i takes the rows i, i + parts, ...: a device's rows stay on it.
    """
    params, batch_stats = variables["params"], variables["batch_stats"]
    if parts == 1:
        (loss, batch_stats), gradient = grad_fn(params, batch_stats, images, targets, key)
        return gradient, loss, batch_stats

    def split(x: Array) -> Array:
        return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)

    def body(carry, part):
        gradient, loss, batch_stats = carry
        (part_loss, batch_stats), part_gradient = grad_fn(params, batch_stats, *part)
        gradient = jax.tree.map(lambda total, x: total + x / parts, gradient, part_gradient)
        return (gradient, loss + part_loss / parts, batch_stats), None

    start = (jax.tree.map(jnp.zeros_like, params), jnp.zeros((), jnp.float32), batch_stats)
    (gradient, loss, batch_stats), _ = jax.lax.scan(
        body, start, (split(images), split(targets), jax.random.split(key, parts))
    )
    return gradient, loss, batch_stats


def _update_ema(ema: Any, variables: Any, decay: float, step: Int[Array, ""]) -> Any:
    """Move the average; early on it forgets faster, so that it does not remember the initial values.

    Reference: TensorFlow's ExponentialMovingAverage with num_updates, min(decay, (1 + n) / (10 + n)).
    """
    decay = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, new: old + (1.0 - decay) * (new - old), ema, variables)


def _accumulate_metrics(
    progress: Progress, step: Array, loss: Array, grad_norm: Array, learning_rate: Array
) -> Progress:
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    first_bad = ~finite & (progress.first_nonfinite_step < 0)
    return replace(
        progress,
        steps=progress.steps + 1,
        loss_sum=progress.loss_sum + loss,
        learning_rate=learning_rate,
        grad_norm=grad_norm,
        first_nonfinite_step=jnp.where(first_bad, step, progress.first_nonfinite_step),
        nonfinite_learning_rate=jnp.where(first_bad, learning_rate, progress.nonfinite_learning_rate),
        nonfinite_loss=jnp.where(first_bad, loss, progress.nonfinite_loss),
        nonfinite_grad_norm=jnp.where(first_bad, grad_norm, progress.nonfinite_grad_norm),
    )
