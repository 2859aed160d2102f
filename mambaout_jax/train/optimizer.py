"""The learning-rate schedule, the optimizer and the moving average, as functions of arrays and plain values."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

Schedule = Callable[[Int[Array, ""]], Float[Array, ""]]


def warmup_cosine(
    *,
    learning_rate: float,
    num_epochs: int,
    steps_per_epoch: int,
    warmup_learning_rate: float = 0.0,
    min_learning_rate: float = 0.0,
    warmup_epochs: int = 0,
    cooldown_epochs: int = 0,
    per_epoch: bool = False,
) -> Schedule:
    """Build the schedule: linear warm-up, then a cosine counted from the start of the run, then a constant.

    With W = warmup_epochs, T = num_epochs - cooldown_epochs, warm = warmup_learning_rate, peak = learning_rate and
    min = min_learning_rate, the rate at epoch t is warm + t (peak - warm) / W for t < W, then
    min + (peak - min) (1 + cos(pi t / T)) / 2 for t < T, and then min.

    Args:
        learning_rate: the base learning rate; the largest rate used is lower if there is a warm-up.
        num_epochs: epochs of the whole run, warm-up and cool-down included.
        per_epoch: update the learning rate once per epoch, as the published recipe does, instead of at each step.

    Returns:
        The function from the step, an integer array of any shape, to the learning rate, float32 of the same shape; a
        schedule of optax.

    Reference: timm 0.6.11, CosineLRScheduler with warmup_prefix=False.
    """
    unit = 1 if per_epoch else steps_per_epoch  # clock units per epoch
    warmup, end = warmup_epochs * unit, (num_epochs - cooldown_epochs) * unit

    def schedule(step: Int[Array, ""]) -> Float[Array, ""]:
        clock = step // steps_per_epoch if per_epoch else step
        warm = warmup_learning_rate + clock * ((learning_rate - warmup_learning_rate) / max(warmup, 1))
        # 1 + cos(pi t / T) = 2 sin^2(pi (T - t) / 2T), which keeps float32's precision where the cosine nears -1.
        sine = jnp.sin((end - clock) * (0.5 * jnp.pi / max(end, 1)))
        cosine = min_learning_rate + (learning_rate - min_learning_rate) * sine**2
        rest = jnp.where(clock < end, cosine, min_learning_rate)
        return jnp.where(clock < warmup, warm, rest).astype(jnp.float32)

    return schedule


def warmup_linear(
    *,
    learning_rate: float,
    num_steps: int,
    warmup_learning_rate: float = 0.0,
    min_learning_rate: float = 0.0,
    warmup_steps: int = 0,
) -> Schedule:
    """Build the schedule: linear warm-up to `learning_rate`, then linear decay to `min_learning_rate` at the last step.

    The last step of the warm-up and the first one after it both have the full learning rate.

    Returns:
        The function from the step, from 0, to the learning rate, float32.

    Reference: mmsegmentation 1.2.2, LinearLR and PolyLR with power 1.
    """
    decay_steps = num_steps - warmup_steps

    def schedule(step: Int[Array, ""]) -> Float[Array, ""]:
        warm = warmup_learning_rate + step * ((learning_rate - warmup_learning_rate) / max(warmup_steps - 1, 1))
        # The steps that are left, so that float32 is precise at the end.
        left = jnp.maximum(num_steps - 1 - step, 0)
        decayed = min_learning_rate + left * ((learning_rate - min_learning_rate) / max(decay_steps - 1, 1))
        return jnp.where(step < warmup_steps, warm, decayed).astype(jnp.float32)

    return schedule


def warmup_multistep(
    *,
    learning_rate: float,
    steps_per_epoch: int,
    drop_epochs: Sequence[int],
    warmup_learning_rate: float = 0.0,
    warmup_steps: int = 0,
) -> Schedule:
    """Build the schedule: linear warm-up to `learning_rate`, divided by 10 at each of `drop_epochs`.

    The last step of the warm-up has the full learning rate. Warm-up and drops multiply.

    Returns:
        The function from the step, from 0, to the learning rate, float32.

    Reference: mmdetection 3.3.0, LinearLR and MultiStepLR with gamma 0.1.
    """

    def schedule(step: Int[Array, ""]) -> Float[Array, ""]:
        warm = warmup_learning_rate + step * ((learning_rate - warmup_learning_rate) / max(warmup_steps - 1, 1))
        rate = jnp.where(step < warmup_steps, warm, learning_rate)
        for epoch in drop_epochs:
            rate = jnp.where(step >= epoch * steps_per_epoch, rate / 10, rate)
        return rate.astype(jnp.float32)

    return schedule


def decay_mask(params: Any, no_decay: frozenset[tuple[str | int, ...]] = frozenset()) -> Any:
    """Return the mask of parameters with weight decay: those with more than one axis that are not in `no_decay`.

    Args:
        params: arrays or shapes in nested dicts, such as `variables["params"]`.
        no_decay: paths of other parameters without weight decay, such as `model.no_decay`.

    Returns:
        A bool for each parameter, in the same nested dicts; a mask of optax.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.ndim > 1 and tuple(entry.key for entry in path) not in no_decay, params
    )


def decay_all_but_norms(params: Any) -> Any:
    """Return the mask of parameters with weight decay: all whose path has no name that contains "norm".

    Biases and batch norms with other names are decayed. Reference: the rule `norm: decay_mult=0` of mmsegmentation's
    configs, which matches parts of names.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: not any("norm" in str(entry.key) for entry in path), params
    )


# By the values of `config.optim.decay_of`: functions from `model.no_decay` to a mask of optax.
DECAY_MASKS: Mapping[str, Callable[[frozenset[tuple[str | int, ...]]], Callable[[Any], Any]]] = MappingProxyType(
    {
        "matrices": lambda no_decay: partial(decay_mask, no_decay=no_decay),
        "all_but_norms": lambda no_decay: decay_all_but_norms,
    }
)


def adamw(
    schedule: Schedule,
    *,
    weight_decay: float,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    clip_grad_norm: float | None = None,
    no_decay: frozenset[tuple[str | int, ...]] = frozenset(),
    mask: Callable[[Any], Any] | None = None,
) -> optax.GradientTransformation:
    """Build AdamW with the decay mask, optionally with clipping by global norm before it.

    Args:
        weight_decay: multiplied by the learning rate, as in PyTorch.
        no_decay: see `decay_mask`.
        mask: function from the parameters to the mask of those with weight decay; None for `decay_mask`.
    """
    mask = mask or partial(decay_mask, no_decay=no_decay)
    update = optax.adamw(schedule, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=mask)
    return _with_clipping(update, clip_grad_norm)


def lamb(
    schedule: Schedule,
    *,
    weight_decay: float,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    clip_grad_norm: float | None = None,
    no_decay: frozenset[tuple[str | int, ...]] = frozenset(),
    mask: Callable[[Any], Any] | None = None,
) -> optax.GradientTransformation:
    """Build LAMB: AdamW whose update of each parameter with weight decay is scaled to the norm of the parameter.

    Parameters without weight decay are updated as by AdamW, as in timm.

    Reference: You et al., Large Batch Optimization for Deep Learning: Training BERT in 76 minutes, 2020.
    """
    mask = mask or partial(decay_mask, no_decay=no_decay)
    update = optax.chain(
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.add_decayed_weights(weight_decay, mask),
        optax.masked(optax.scale_by_trust_ratio(), mask),
        optax.scale_by_learning_rate(schedule),
    )
    return _with_clipping(update, clip_grad_norm)


# By the values of `config.optim.name`.
OPTIMIZERS: Mapping[str, Callable[..., optax.GradientTransformation]] = MappingProxyType({"adamw": adamw, "lamb": lamb})


def _with_clipping(update: optax.GradientTransformation, clip_grad_norm: float | None) -> optax.GradientTransformation:
    return update if clip_grad_norm is None else optax.chain(optax.clip_by_global_norm(clip_grad_norm), update)


def update_ema(ema: Any, variables: Any, decay: float, step: Int[Array, ""] | int) -> Any:
    """Compute the moving average of the variables after a step: ema + (1 - decay) (variables - ema).

    The decay starts low to forget the initial values.

    Args:
        ema: the average before the step, with the structure and shapes of `variables`; the initial variables at step 0.
        decay: the largest decay, such as 0.9999.
        step: number of steps before this one.

    Reference: TensorFlow's ExponentialMovingAverage with num_updates, min(decay, (1 + n) / (10 + n)).
    """
    decay = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, new: old + (1.0 - decay) * (new - old), ema, variables)
