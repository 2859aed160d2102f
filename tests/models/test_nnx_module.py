"""A model as an nnx module computes and learns what it does as functions, for every family."""

import copy
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import mambaout_jax as mo
from mambaout_jax import plugins
from mambaout_jax.models import ModelError, NNXModel
from tests.marks import slow_but
from tests.models import golden
from tests.toy import model as toy

SMALL = golden.small_models()
RATES = {"drop_rate": 0.2, "drop_path_rate": 0.3}
# The module is the same for all models; the others are compared at night.
every_small_model = pytest.mark.parametrize("name", slow_but(["mambaout-conv", "vit-class_token"], SMALL, "nightly"))


@functools.cache
def small(name, **options):
    base, own = SMALL[name]
    return mo.create_model(base, **{"img_size": (32, 40), "num_classes": 5, **own, **options})


@functools.cache
def variables_of(name):
    rng = np.random.default_rng(3)
    initial = small(name).init(jax.random.key(0))
    return jax.tree.map(lambda leaf: leaf + 0.2 * rng.normal(size=leaf.shape).astype(np.float32), initial)


def images(model, batch=4):
    shape = (batch, *model.input_spec.size, model.in_chans)
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


@pytest.fixture
def spotter(monkeypatch):
    """A model with batch statistics."""
    monkeypatch.setattr(plugins, "provided", lambda attribute: (toy.FAMILY,))
    model = mo.create_model("spotter_small", num_classes=2, drop_rate=0.2)
    return model, model.init(jax.random.key(0))


@nnx.jit
def compute(module, x, rngs=None):
    return module(x, rngs=rngs)


def assert_close(ours, theirs):
    for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * max(float(jnp.abs(b).max()), 1e-6))


@pytest.mark.slow
@every_small_model
def test_module_computes_every_output_of_the_model_without_changing_its_variables(name):
    model, x = small(name, **RATES), images(small(name))
    module = model.to_nnx(variables_of(name), rngs=nnx.Rngs(0))
    ours = nnx.jit(lambda module, x: [module(x), module.features(x), module.embed(x)])(module, x)
    assert_close(
        ours, jax.jit(lambda v, x: [f(v, x) for f in (model.apply, model.features, model.embed)])(variables_of(name), x)
    )
    assert jax.tree.all(jax.tree.map(np.array_equal, model.from_nnx(module), variables_of(name)))


def train_both(model, variables, steps=5):
    """Return (losses, variables) of training with nnx, and of training with apply_train and optax."""
    x, optimizer, keys = images(model), optax.adamw(1e-2), nnx.Rngs(7)["dropout"].fork()
    module = model.to_nnx(variables, rngs=nnx.Rngs(7))
    module.train()
    state = nnx.Optimizer(module, optimizer, wrt=nnx.Param)

    @nnx.jit
    def nnx_step(module, state):
        loss, gradients = nnx.value_and_grad(lambda module: jnp.square(module(x)).mean())(module)
        state.update(module, gradients)
        return loss

    @jax.jit
    def step(variables, state, key):
        def loss(params):
            logits, batch_stats = model.apply_train({**variables, "params": params}, x, key=key)
            return jnp.square(logits).mean(), batch_stats

        (value, batch_stats), gradients = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        updates, state = optimizer.update(gradients, state, variables["params"])
        return {"params": optax.apply_updates(variables["params"], updates), "batch_stats": batch_stats}, state, value

    losses, expected, optimizer_state = [], [], optimizer.init(variables["params"])
    for _ in range(steps):
        losses.append(nnx_step(module, state))
        variables, optimizer_state, value = step(variables, optimizer_state, keys())
        expected.append(value)
    return (losses, model.from_nnx(module)), (expected, variables)


@pytest.mark.slow
@every_small_model
def test_five_steps_of_an_nnx_optimizer_equal_those_of_optax(name):
    ours, expected = train_both(small(name, **RATES), variables_of(name))
    assert_close(ours, expected)
    assert not any(map(np.array_equal, *map(jax.tree.leaves, (ours[1]["params"], variables_of(name)["params"]))))


@pytest.mark.slow
def test_training_updates_batch_statistics_as_apply_train_does(spotter):
    model, variables = spotter
    ours, expected = train_both(model, variables)
    assert_close(ours, expected)
    assert jax.tree.leaves(ours[1]["batch_stats"])


@pytest.mark.slow
def test_evaluation_uses_running_statistics_and_keeps_them(spotter):
    model, variables = spotter
    module, x = model.to_nnx(variables, rngs=nnx.Rngs(0)), images(model)
    module.train()
    in_training = compute(module, x)
    trained = model.from_nnx(module)
    module.eval()
    assert_close(compute(module, x), jax.jit(model.apply)(trained, x))
    assert_close(model.from_nnx(module), trained)
    assert not np.allclose(in_training, compute(module, x))
    view = nnx.view(module, deterministic=False, use_running_average=False)
    assert not np.allclose(compute(view, x, nnx.Rngs(0)), compute(module, x))
    assert module.deterministic


@pytest.mark.slow
def test_keys_come_from_the_module_or_the_call():
    name = "mambaout-conv"
    model = small(name, **RATES)
    x, key, module = images(model), jax.random.key(1), model.to_nnx(variables_of(name))
    module.train()
    with pytest.raises(ModelError, match=r"drop_rate is 0\.2 .* pass rngs=nnx\.Rngs\(0\)"):
        module(x)
    expected, _ = jax.jit(model.apply_train)(variables_of(name), x, key=key)
    assert_close(compute(module, x, key), expected)
    assert_close(compute(module, x, nnx.Rngs(dropout=3)), compute(module, x, nnx.Rngs(dropout=3)))
    own = model.to_nnx(variables_of(name), rngs=nnx.Rngs(0))
    own.train()
    assert not np.array_equal(compute(own, x), compute(own, x))
    quiet = small(name).to_nnx(variables_of(name))
    quiet.train()
    assert_close(compute(quiet, x), jax.jit(model.apply)(variables_of(name), x))


@pytest.mark.slow
def test_every_output_takes_its_key_from_the_call():
    name = "mambaout-conv"
    model = small(name, **RATES)
    x, key, module = images(model), jax.random.key(1), model.to_nnx(variables_of(name))
    module.train()
    for output, method in (("features", NNXModel.features), ("embedding", NNXModel.embed)):
        expected, _ = jax.jit(functools.partial(model.apply_train, output=output))(variables_of(name), x, key=key)
        assert_close(nnx.jit(method)(module, x, rngs=key), expected)
        with pytest.raises(ModelError, match="to the call"):
            method(module, x)


@pytest.mark.slow
def test_a_source_without_the_stream_of_dropout_is_refused_if_a_rate_needs_it():
    name = "mambaout-conv"
    params = nnx.Rngs(params=0)
    model, quiet = small(name, **RATES), small(name)
    for module in (model.to_nnx(variables_of(name)), model.to_nnx(variables_of(name), rngs=params)):
        module.train()
        with pytest.raises(ModelError, match=r"drop_rate is 0\.2 .* pass rngs=nnx\.Rngs\(0\)"):
            module(images(model), rngs=params)
    module = quiet.to_nnx(variables_of(name), rngs=params)
    module.train()
    assert_close(compute(module, images(quiet)), jax.jit(quiet.apply)(variables_of(name), images(quiet)))


@pytest.mark.slow
@every_small_model
def test_copies_are_independent_and_compare_equal_as_graphs(name):
    model, x = small(name), images(small(name))
    module = model.to_nnx(variables_of(name), rngs=nnx.Rngs(0))
    copies = copy.deepcopy(module), pickle.loads(pickle.dumps(module)), nnx.merge(*nnx.split(nnx.clone(module)))
    assert nnx.graphdef(copies[0]) == nnx.graphdef(module)
    nnx.update(module, jax.tree.map(jnp.zeros_like, nnx.state(module, nnx.Param)))
    assert not np.any(compute(module, x))
    for other in copies:
        assert_close(compute(other, x), jax.jit(model.apply)(variables_of(name), x))


@every_small_model
def test_module_can_be_displayed(name, capsys):
    nnx.display(small(name).to_nnx(variables_of(name), rngs=nnx.Rngs(0)))
    printed = capsys.readouterr().out
    assert type(small(name)).__name__ in printed
    assert "initializer" not in printed


@pytest.mark.slow
def test_only_a_module_of_the_model_is_converted_back(no_type_checks):
    name = "mambaout-conv"
    model, other = small(name), small(name, num_classes=7)
    with pytest.raises(ModelError, match="the module has type Linear"):
        model.from_nnx(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    module = other.to_nnx(other.init(jax.random.key(0)))
    assert isinstance(module, NNXModel)
    with pytest.raises(ModelError, match="has shape"):
        model.from_nnx(module)
