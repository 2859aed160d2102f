"""LayerNorm is its formula, and its gradient that of the formula."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mambaout_jax.ops import layer_norm

EPS = 1e-3


def _formula(x, weight, bias):
    y = x - x.mean(-1, keepdims=True)
    y = y / jnp.sqrt(jnp.square(y).mean(-1, keepdims=True) + EPS)
    return y * weight.reshape((1,) * (x.ndim - 1) + (-1,)) + bias.reshape((1,) * (x.ndim - 1) + (-1,))


@partial(jax.jit, static_argnums=0)
def _value_and_gradients(op, x, weight, bias, dy):
    y, vjp = jax.vjp(op, x, weight, bias)
    return y, *vjp(dy)


def _data(shape):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=s) + 1, jnp.float32) for s in (shape, shape[-1:], shape[-1:], shape)]


@pytest.mark.parametrize("shape", [(2, 3, 4, 8), (5, 7), (6,)])
def test_value_and_gradients_equal_those_of_the_formula(shape):
    data = _data(shape)
    actual = _value_and_gradients(lambda *args: layer_norm(*args, EPS), *data)
    for a, e in zip(actual, _value_and_gradients(_formula, *data), strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=1e-5 * np.abs(e).max())


def test_bfloat16_is_the_float32_result_rounded_once():
    x, weight, bias, dy = _data((4, 16))
    x, dy = x.astype(jnp.bfloat16), dy.astype(jnp.bfloat16)
    actual = _value_and_gradients(lambda *args: layer_norm(*args, EPS), x, weight, bias, dy)
    exact = _value_and_gradients(_formula, x.astype(jnp.float32), weight, bias, dy.astype(jnp.float32))
    assert [a.dtype.name for a in actual] == ["bfloat16", "bfloat16", "float32", "float32"]
    for a, e in zip(actual, exact, strict=True):
        tolerance = 2**-8 if a.dtype == jnp.bfloat16 else 1e-5
        np.testing.assert_allclose(a.astype(jnp.float32), e, rtol=0, atol=tolerance * np.abs(e).max())


def test_small_variance_on_a_large_mean_keeps_its_digits():
    x = jnp.asarray([[1000.0, 1000.25, 1000.5, 1000.75]])
    y = layer_norm(x, jnp.ones(4), jnp.zeros(4), 0.0)
    np.testing.assert_allclose(y[0], np.array([-3, -1, 1, 3]) / np.sqrt(5), rtol=1e-5)
