"""Each normalization equals its formula, and its gradient that of the formula."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mambaout_jax.ops import batch_norm, layer_norm, normalize, rms_norm

EPS = 1e-3


def _row(vector, x):
    return vector.reshape((1,) * (x.ndim - 1) + (-1,))


def _layer_norm(x, weight, bias):
    y = x - x.mean(-1, keepdims=True)
    y = y / jnp.sqrt(jnp.square(y).mean(-1, keepdims=True) + EPS)
    return y * _row(weight, x) + _row(bias, x)


def _rms_norm(x, weight, bias):
    return x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + EPS) * _row(weight, x)


def _batch_norm(x, weight, bias):
    batch = tuple(range(x.ndim - 1))
    y = x - x.mean(batch, keepdims=True)
    y = y / jnp.sqrt(jnp.square(y).mean(batch, keepdims=True) + EPS)
    return y * _row(weight, x) + _row(bias, x)


NORMS = {
    "layer": (lambda *args: layer_norm(*args, EPS), _layer_norm),
    "rms": (lambda x, weight, bias: rms_norm(x, weight, EPS), _rms_norm),
    "batch": (lambda *args: batch_norm(*args, EPS)[0], _batch_norm),
}


@partial(jax.jit, static_argnums=0)
def _value_and_gradients(op, x, weight, bias, dy):
    y, vjp = jax.vjp(op, x, weight, bias)
    return y, *vjp(dy)


def _data(shape):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=s) + 1, jnp.float32) for s in (shape, shape[-1:], shape[-1:], shape)]


def _tolerance(expected, relative):
    return relative * max(np.abs(expected).max(), 1e-6)


SHAPES = [(norm, shape) for norm in NORMS for shape in [(2, 3, 4, 8), (5, 7)]]


# A single row has no batch statistics.
@pytest.mark.parametrize(("norm", "shape"), [*SHAPES, ("layer", (6,)), ("rms", (6,))])
def test_value_and_gradients_equal_those_of_the_formula(norm, shape):
    op, formula = NORMS[norm]
    data = _data(shape)
    for a, e in zip(_value_and_gradients(op, *data), _value_and_gradients(formula, *data), strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=_tolerance(e, 1e-5))


@pytest.mark.parametrize("norm", NORMS)
def test_bfloat16_is_the_float32_result_rounded_once(norm):
    op, formula = NORMS[norm]
    x, weight, bias, dy = _data((4, 16))
    x, dy = x.astype(jnp.bfloat16), dy.astype(jnp.bfloat16)
    actual = _value_and_gradients(op, x, weight, bias, dy)
    exact = _value_and_gradients(formula, x.astype(jnp.float32), weight, bias, dy.astype(jnp.float32))
    assert [a.dtype.name for a in actual] == ["bfloat16", "bfloat16", "float32", "float32"]
    for a, e in zip(actual, exact, strict=True):
        tolerance = 2**-8 if a.dtype == jnp.bfloat16 else 1e-5
        np.testing.assert_allclose(a.astype(jnp.float32), e, rtol=0, atol=_tolerance(e, tolerance))


@pytest.mark.parametrize("shape", [(2, 3, 4, 8), (5, 7), (6,)])
def test_layer_norm_of_centered_rows_is_the_same_up_to_the_mean_of_the_gradient(shape):
    x, weight, bias, dy = _data(shape)
    x -= x.mean(-1, keepdims=True)
    op = partial(layer_norm, eps=EPS, centered=True)
    y, dx, *actual = _value_and_gradients(op, x, weight, bias, dy)
    # The op leaves a mean in the gradient, which the op that computed x removes.
    assert np.abs(dx.mean(-1)).max() > 1e-3
    actual = y, dx - dx.mean(-1, keepdims=True), *actual
    for a, e in zip(actual, _value_and_gradients(_layer_norm, x, weight, bias, dy), strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=_tolerance(e, 1e-5))


@pytest.mark.slow
def test_small_variance_with_a_large_mean_is_precise():
    x = jnp.asarray([[1000.0, 1000.25, 1000.5, 1000.75]])
    expected = np.array([-3, -1, 1, 3]) / np.sqrt(5)
    np.testing.assert_allclose(layer_norm(x, jnp.ones(4), jnp.zeros(4), 0.0)[0], expected, rtol=1e-5)
    y, mean, variance = batch_norm(x.T, jnp.ones(1), jnp.zeros(1), 0.0)
    np.testing.assert_allclose(y[:, 0], expected, rtol=1e-5)
    np.testing.assert_allclose((mean[0], variance[0]), (1000.375, 0.078125), rtol=1e-6)


@pytest.mark.slow
def test_no_gradient_flows_through_batch_statistics():
    x, weight, bias, _ = _data((4, 3))
    gradient = jax.grad(lambda x: sum(s.sum() for s in batch_norm(x, weight, bias, EPS)[1:]))(x)
    np.testing.assert_array_equal(gradient, 0)


def test_given_statistics_normalize_like_batch_statistics():
    x, weight, bias, _ = _data((4, 3, 5))
    y, mean, variance = batch_norm(x, weight, bias, EPS)
    np.testing.assert_allclose(normalize(x, mean, variance, weight, bias, EPS), y, rtol=0, atol=1e-5)
