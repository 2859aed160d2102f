"""A model computed with kernels equals the model computed with XLA's operations."""

import pickle
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

import mambaout_jax as mo
from mambaout_jax.models import ModelError
from mambaout_jax.models.macs import count_model_macs
from mambaout_jax.ops import use_kernels

SMALL = {"depths": (2,), "dims": (8,), "num_classes": 3, "kernel_size": 3, "drop_path_rate": 0.5}


def small(**options):
    return mo.create_model("mambaout_femto", **SMALL, **options)


def images(batch=3):
    return jnp.asarray(np.random.default_rng(0).normal(size=(batch, 32, 36, 3)), jnp.float32)


def loss_and_gradients(model):
    variables = jax.tree.map(lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), small().init(key()))

    def loss(params):
        logits, _ = model.apply_train({"params": params}, images(), key=key())
        return (logits * jnp.arange(3.0)[None]).sum()

    return jax.jit(jax.value_and_grad(loss))(variables["params"])


def key():
    return jax.random.key(0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, {"scan_blocks": True}, {"remat": "full"}, {"remat": "save_matmuls", "scan_blocks": True}]
)
def test_kernels_change_no_results(options):
    expected = loss_and_gradients(small(kernels="xla"))
    for a, e in zip(
        *map(jax.tree.leaves, (loss_and_gradients(small(kernels="pallas", **options)), expected)), strict=True
    ):
        np.testing.assert_allclose(a, e, rtol=0, atol=1e-5 * np.abs(e).max())


@pytest.mark.slow
@pytest.mark.parametrize("kernels", ["auto", "pallas"])
def test_a_kernel_is_traced_once_for_all_blocks(kernels, monkeypatch):
    pallas_call, calls = pl.pallas_call, []
    monkeypatch.setattr(pl, "pallas_call", lambda *args, **options: calls.append(1) or pallas_call(*args, **options))

    def count(depth):
        model = mo.create_model("mambaout_femto", **{**SMALL, "depths": (depth,)}, kernels=kernels)
        jax.clear_caches()
        calls.clear()
        gradient = jax.grad(lambda params: model.apply_train({"params": params}, images(8))[0].sum())
        jax.make_jaxpr(gradient)(model.shapes["params"])
        return len(calls)

    assert count(1) == count(3) > 0


def count_kernels(function):
    return str(jax.make_jaxpr(function)()).count("pallas_call")


def test_the_choice_is_a_property_of_the_model():
    variables = small().init(key())
    for kernels in ("auto", "xla", "pallas"):
        model = pickle.loads(pickle.dumps(small(kernels=kernels)))
        assert model.kernels == kernels
        assert "kernels" not in model.options
        module = model.to_nnx(variables)
        for function in (partial(model.apply, variables, images()), lambda module=module: module(images())):
            assert (count_kernels(function) > 0) == (kernels == "pallas")


def test_a_choice_around_a_model_holds_for_models_without_one():
    variables = small().init(key())
    for kernels, used in (("auto", True), ("xla", False)):
        model = small(kernels=kernels)
        with use_kernels("pallas"):
            assert (count_kernels(lambda model=model: model.apply(variables, images())) > 0) == used


def test_multiply_adds_do_not_depend_on_the_choice():
    assert count_model_macs(small(kernels="pallas")) == count_model_macs(small())


def test_unknown_choices_are_refused(monkeypatch):
    monkeypatch.setenv("MAMBAOUT_KERNELS", "slow")
    with pytest.raises(ModelError, match="MAMBAOUT_KERNELS is 'slow'"):
        small()
    with pytest.raises(ModelError, match="kernels is 'fast'"):
        small(kernels="fast")
