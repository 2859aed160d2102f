import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mambaout_jax as mo
from mambaout_jax.train.optim import adamw, decay_mask, warmup_cosine

RECIPE = {
    "learning_rate": 4e-3,
    "warmup_learning_rate": 1e-6,
    "min_learning_rate": 1e-5,
    "warmup_epochs": 20,
    "cooldown_epochs": 10,
    "num_epochs": 310,
    "steps_per_epoch": 312,
}

# Epoch -> learning rate of the published recipe (timm 0.6.11).
PUBLISHED = {
    0: 1e-6,
    1: 2.0095e-4,
    19: 3.80005e-3,
    20: 3.956404e-3,
    100: 3.0025e-3,
    150: 2.005e-3,
    200: 1.0075e-3,
    299: 1.010939e-5,
    300: 1e-5,
    309: 1e-5,
}


@pytest.mark.parametrize(("epoch", "rate"), PUBLISHED.items())
def test_staircase_is_the_published_schedule(epoch, rate):
    schedule = warmup_cosine(**RECIPE, per_epoch=True)
    for step in (epoch * 312, epoch * 312 + 311):
        np.testing.assert_allclose(schedule(jnp.int32(step)), rate, rtol=1e-6)


def test_smooth_schedule_meets_the_staircase_where_epochs_start():
    smooth, stairs = (warmup_cosine(**RECIPE, per_epoch=value) for value in (False, True))
    starts = jnp.arange(310, dtype=jnp.int32) * 312
    np.testing.assert_allclose(smooth(starts), stairs(starts), rtol=1e-6)
    assert smooth(jnp.int32(312 * 10 + 156)) > stairs(jnp.int32(312 * 10 + 156))


def test_schedule_without_warmup_starts_at_its_peak():
    schedule = warmup_cosine(**{**RECIPE, "warmup_epochs": 0}, per_epoch=False)
    np.testing.assert_allclose(schedule(jnp.int32(0)), 4e-3, rtol=1e-6)


@pytest.mark.parametrize("name", mo.list_models())
def test_decay_touches_weights_of_convolutions_and_products_alone(name):
    model = mo.create_model(name)
    params = jax.eval_shape(model.init, jax.random.key(0))["params"]
    for path, decays in jax.tree_util.tree_leaves_with_path(decay_mask(params, model.no_decay)):
        *_, layer, leaf = (str(entry.key) for entry in path)
        assert decays == (leaf == "weight" and not layer.startswith("norm")), path


def test_no_decay_exempts_a_path():
    params = {"a": {"weight": jnp.ones((2, 2))}, "b": {"weight": jnp.ones((2, 2))}}
    assert decay_mask(params, frozenset({("b", "weight")})) == {"a": {"weight": True}, "b": {"weight": False}}


def one_update(gradient, **options):
    params = {"weight": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    settings = {"weight_decay": 0.1, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "clip_grad_norm": None, **options}
    optimizer = adamw(lambda step: jnp.float32(0.5), no_decay=frozenset(), **settings)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    return updates


def test_decay_is_multiplied_by_the_learning_rate():
    updates = one_update({"weight": jnp.zeros((2, 2)), "bias": jnp.zeros(2)})
    np.testing.assert_allclose(updates["weight"], -0.5 * 0.1, rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], 0.0)


def test_clipping_bounds_the_global_norm():
    gradient = {"weight": jnp.full((2, 2), 30.0), "bias": jnp.full(2, 40.0)}
    norm = np.sqrt(4 * 30.0**2 + 2 * 40.0**2)
    # With eps far above the gradient, the first step of Adam is the gradient over eps.
    kept, clipped = (one_update(gradient, eps=1e6, weight_decay=0.0, clip_grad_norm=limit) for limit in (1e9, 0.5))
    for name in gradient:
        np.testing.assert_allclose(clipped[name] / kept[name], 0.5 / norm, rtol=1e-4)
