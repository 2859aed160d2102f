import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mambaout_jax as mo
from mambaout_jax.train.optimizer import adamw, decay_mask, lamb, warmup_cosine
from tests.timm import TIMM_MODELS, load_timm

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


def formula(epoch):
    """Compute the recipe's learning rate in float64; `epoch` may be fractional."""
    warm = 1e-6 + epoch * (4e-3 - 1e-6) / 20
    cosine = 1e-5 + 0.5 * (4e-3 - 1e-5) * (1 + np.cos(np.pi * epoch / 300))
    return np.select([epoch < 20, epoch < 300], [warm, cosine], 1e-5)


def rates(steps, *, per_epoch):
    return jax.jit(warmup_cosine(**RECIPE, per_epoch=per_epoch))(jnp.asarray(steps, jnp.int32))


def test_staircase_has_the_published_values():
    epochs = np.array([*PUBLISHED])
    np.testing.assert_allclose(formula(epochs), [*PUBLISHED.values()], rtol=5e-7)
    for step in (0, 311):
        np.testing.assert_allclose(rates(312 * epochs + step, per_epoch=True), [*PUBLISHED.values()], rtol=1e-6)


def test_staircase_equals_the_formula_at_both_ends_of_all_310_epochs():
    epochs = np.arange(310)
    for step in (0, 311):
        np.testing.assert_allclose(rates(312 * epochs + step, per_epoch=True), formula(epochs), rtol=1e-6)


def test_smooth_schedule_equals_the_formula_at_both_ends_of_all_310_epochs():
    for step in (0, 311):
        steps = 312 * np.arange(310) + step
        np.testing.assert_allclose(rates(steps, per_epoch=False), formula(steps / 312), rtol=1e-6)


@pytest.mark.torch
def test_staircase_equals_timms_scheduler():
    _, torch = load_timm()
    from timm.scheduler import CosineLRScheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=4e-3)
    theirs = CosineLRScheduler(optimizer, t_initial=300, lr_min=1e-5, warmup_t=20, warmup_lr_init=1e-6)
    expected = [optimizer.param_groups[0]["lr"]]
    for epoch in range(1, 310):
        theirs.step(epoch)
        expected.append(optimizer.param_groups[0]["lr"])
    np.testing.assert_allclose(rates(312 * np.arange(310), per_epoch=True), expected, rtol=1e-6)


@pytest.mark.parametrize("per_epoch", [False, True])
def test_schedule_of_only_cooldown_is_constant(per_epoch):
    settings = {**RECIPE, "warmup_epochs": 0, "num_epochs": 10}
    schedule = warmup_cosine(**settings, per_epoch=per_epoch)
    np.testing.assert_allclose(schedule(jnp.arange(0, 3120, 100)), 1e-5, rtol=1e-6)


def test_schedule_without_warmup_starts_at_its_peak():
    schedule = warmup_cosine(**{**RECIPE, "warmup_epochs": 0}, per_epoch=False)
    np.testing.assert_allclose(schedule(jnp.int32(0)), 4e-3, rtol=1e-6)


def decayed(name):
    """Return the number of axes and whether weight decay applies, by timm's name of a parameter."""
    model = mo.create_model(name)
    params = jax.eval_shape(model.init, jax.random.key(0))["params"]
    mask = jax.tree.leaves(decay_mask(params, model.no_decay))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    assert len(mask) == len(leaves)
    return {
        ".".join(str(entry.key) for entry in path): (leaf.ndim, decays)
        for (path, leaf), decays in zip(leaves, mask, strict=True)
    }


@pytest.mark.parametrize("name", ["mamba_femto", "mambaout_femto", "test_mambaout", "vit_tiny_patch16_224"])
def test_decay_touches_weights_of_convolutions_and_products_alone(name):
    for parameter, (ndim, decays) in decayed(name).items():
        if parameter in ("cls_token", "pos_embed"):
            assert not decays
            continue
        assert decays == (ndim > 1 and not parameter.endswith(("bias", ".A_log"))), parameter
        layer, _, leaf = parameter.rpartition(".")
        # Every layer is a convolution, a linear layer, a normalization, a LayerScale or a state space model.
        assert decays == (leaf == "weight" and not layer.rpartition(".")[2].startswith("norm")), parameter


@pytest.mark.torch
@pytest.mark.parametrize("name", TIMM_MODELS)
def test_decay_touches_what_timm_decays(name):
    timm, torch = load_timm()
    from timm.optim import param_groups_weight_decay

    with torch.device("meta"):
        model = timm.create_model(name)
    groups = param_groups_weight_decay(model, 0.05, no_weight_decay_list=["norm", "cls_token", "pos_embed"])
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    expected = {names[id(parameter)]: bool(group["weight_decay"]) for group in groups for parameter in group["params"]}
    assert {key: decays for key, (_, decays) in decayed(name).items()} == expected


def test_no_decay_exempts_a_path():
    params = {"a": {"weight": jnp.ones((2, 2))}, "b": {"weight": jnp.ones((2, 2))}}
    assert decay_mask(params, frozenset({("b", "weight")})) == {"a": {"weight": True}, "b": {"weight": False}}


def one_update(gradient, **options):
    params = {"weight": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    settings = {"weight_decay": 0.1, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "clip_grad_norm": None, **options}
    optimizer = adamw(lambda step: jnp.float32(0.5), no_decay=frozenset(), **settings)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    return updates


@pytest.mark.slow
def test_lamb_scales_the_update_of_a_matrix_to_its_norm_and_that_of_a_vector_not():
    params = {"weight": jnp.full((2, 2), 3.0), "bias": jnp.full(2, 3.0)}
    settings = {"weight_decay": 0.1, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "clip_grad_norm": None}
    gradient = jax.tree.map(jnp.ones_like, params)
    ours, theirs = (build(lambda step: jnp.float32(0.5), no_decay=frozenset(), **settings) for build in (lamb, adamw))
    (scaled, _), (expected, _) = (each.update(gradient, each.init(params), params) for each in (ours, theirs))
    np.testing.assert_allclose(np.linalg.norm(scaled["weight"]), 0.5 * np.linalg.norm(params["weight"]), rtol=1e-6)
    np.testing.assert_array_equal(scaled["bias"], expected["bias"])


@pytest.mark.torch
def test_lamb_equals_timms():
    _, torch = load_timm()
    from timm.optim import Lamb

    rng = np.random.default_rng(0)
    params = {"weight": rng.normal(size=(3, 4)).astype(np.float32), "bias": rng.normal(size=4).astype(np.float32)}
    theirs = {name: torch.nn.Parameter(torch.from_numpy(value.copy())) for name, value in params.items()}
    groups = [
        {"params": [theirs["weight"]], "weight_decay": 0.1},
        {"params": [theirs["bias"]], "weight_decay": 0.0},
    ]
    reference = Lamb(groups, lr=0.01, eps=1e-6, max_grad_norm=None)
    settings = {"weight_decay": 0.1, "b1": 0.9, "b2": 0.999, "eps": 1e-6, "clip_grad_norm": None}
    optimizer = lamb(lambda step: jnp.float32(0.01), no_decay=frozenset(), **settings)
    ours, state = jax.tree.map(jnp.asarray, params), None
    state = optimizer.init(ours)
    for _ in range(3):
        gradient = {name: rng.normal(size=value.shape).astype(np.float32) for name, value in params.items()}
        updates, state = optimizer.update(gradient, state, ours)
        ours = jax.tree.map(jnp.add, ours, updates)
        for name, parameter in theirs.items():
            parameter.grad = torch.from_numpy(gradient[name])
        reference.step()
    for name, parameter in theirs.items():
        np.testing.assert_allclose(ours[name], parameter.detach().numpy(), rtol=0, atol=1e-6)


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
