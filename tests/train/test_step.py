import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mambaout_jax as mo
from mambaout_jax.train.mixing import Augmentation
from mambaout_jax.train.optim import adamw
from mambaout_jax.train.state import init_progress, init_state
from mambaout_jax.train.step import make_eval_step, make_train_step, rank_of_label

KEY = jax.random.key(1)


@pytest.fixture(scope="module")
def model():
    return mo.create_model("mambaout_femto", img_size=32, in_chans=1, num_classes=4, depths=(1, 1), dims=(8, 16))


def batch(size=8, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (size, 32, 32, 1), dtype=np.uint8)),
        "label": jnp.asarray(rng.integers(0, 4, size), jnp.int32),
    }


def step_of(model, optimizer=None, *, accumulation_steps=1, ema_decay=None, augmentation=None):

    def rate(step):
        return jnp.float32(1e-2)

    optimizer = optimizer or adamw(
        rate, weight_decay=0.05, b1=0.9, b2=0.999, eps=1e-8, clip_grad_norm=None, no_decay=frozenset()
    )
    step = make_train_step(
        model,
        optimizer,
        rate,
        augmentation or Augmentation(),
        accumulation_steps=accumulation_steps,
        ema_decay=ema_decay,
    )
    return jax.jit(step), init_state(model, optimizer, KEY, ema=ema_decay is not None)


def gradient_of(model, **options):
    """Recover the gradient from a step of plain descent at rate 1."""
    step, state = step_of(model, optax.sgd(1.0), **options)
    after, progress = step(state, init_progress(), batch(), KEY)
    return jax.tree.map(jnp.subtract, state.variables["params"], after.variables["params"]), progress


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_equals_the_batch_at_once(model, parts):
    whole, progress = gradient_of(model)
    split, split_progress = gradient_of(model, accumulation_steps=parts)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(split), strict=True):
        # Both were recovered by a subtraction from parameters of up to 1.
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * float(jnp.abs(a).max()) + 1e-7)
    np.testing.assert_allclose(split_progress.loss_sum, progress.loss_sum, rtol=1e-6)


def test_steps_lower_the_loss_and_are_counted(model):
    step, state = step_of(model)
    losses = []
    for _ in range(12):
        state, progress = step(state, init_progress(), batch(), KEY)
        losses.append(float(progress.loss_sum))
    assert losses[-1] < 0.85 * losses[0]
    assert int(state.step) == 12


def test_progress_sums_the_steps(model):
    step, state = step_of(model)
    progress, losses = init_progress(), []
    for _ in range(3):
        _, alone = step(state, init_progress(), batch(), KEY)
        state, progress = step(state, progress, batch(), KEY)
        losses.append(float(alone.loss_sum))
    assert int(progress.steps) == 3
    np.testing.assert_allclose(progress.loss_sum, sum(losses), rtol=1e-6)
    assert int(progress.bad_step) == -1


def test_first_step_that_is_not_finite_is_remembered(model):
    step, state = step_of(model)
    state, progress = step(state, init_progress(), batch(), KEY)
    state.variables["params"]["head"]["fc"]["bias"] = jnp.full(4, jnp.nan)
    for _ in range(3):
        state, progress = step(state, progress, batch(), KEY)
    assert int(progress.bad_step) == 1
    np.testing.assert_allclose(progress.bad_learning_rate, 1e-2)
    assert np.isnan(progress.bad_loss)


def test_average_follows_its_formula(model):
    step, state = step_of(model, ema_decay=0.5)

    def leaf(variables):
        return np.asarray(variables["params"]["head"]["fc"]["weight"], np.float64)

    expected = leaf(state.variables)
    for n in range(6):
        state, _ = step(state, init_progress(), batch(seed=n), KEY)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * leaf(state.variables)
    np.testing.assert_allclose(leaf(state.ema), expected, rtol=1e-5, atol=1e-7)


def test_steps_draw_anew_and_runs_draw_alike(model):
    step, state = step_of(model, augmentation=Augmentation(pad=4, mixup_alpha=0.8, mix_rate=1.0, mixup_group=4))
    first, again = (step(state, init_progress(), batch(), KEY)[1].loss_sum for _ in range(2))
    assert first == again
    later = jax.tree.map(lambda x: x, state)
    later = type(state)(state.step + 1, later.variables, later.ema, later.opt_state)
    assert step(later, init_progress(), batch(), KEY)[1].loss_sum != first
    assert step(state, init_progress(), batch(), jax.random.key(2))[1].loss_sum != first


def test_rank_is_the_place_in_a_stable_sort():
    rng = np.random.default_rng(0)
    logits = rng.integers(0, 4, (200, 10)).astype(np.float32)  # with ties
    labels = rng.integers(0, 10, 200).astype(np.int32)
    order = np.argsort(-logits, axis=1, kind="stable")
    expected = np.argmax(order == labels[:, None], axis=1)
    np.testing.assert_array_equal(rank_of_label(jnp.asarray(logits), jnp.asarray(labels)), expected)


def test_logits_that_are_not_numbers_are_no_hit():
    logits = jnp.full((1, 6), jnp.nan)
    assert int(rank_of_label(logits, jnp.zeros(1, jnp.int32))[0]) >= 5


def test_evaluation_counts_masked_rows_not_at_all(model):
    variables = model.init(KEY)
    images = batch(6)
    step = jax.jit(make_eval_step(model))
    full, logits = step(variables, {**images, "mask": jnp.ones(6, bool)})
    mask = jnp.asarray([True, False, True, True, False, False])
    some, _ = step(variables, {**images, "mask": mask})
    hits = np.asarray(logits).argmax(1) == np.asarray(images["label"])
    assert int(full["top1"]) == hits.sum()
    assert int(some["top1"]) == hits[np.asarray(mask)].sum()
    assert (int(full["count"]), int(some["count"])) == (6, 3)
    assert int(full["top5"]) == 6, "four classes are all among the first five"
