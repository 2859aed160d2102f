"""GELU is exact, and softplus has the values of JAX's."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from mambaout_jax.ops import gelu
from mambaout_jax.ops.activations import softplus

POINTS = np.linspace(-6, 6, 49)


def test_gelu_and_its_gradient_equal_the_definition():
    below = np.array([0.5 * (1 + math.erf(x / math.sqrt(2))) for x in POINTS])
    density = np.exp(-(POINTS**2) / 2) / math.sqrt(2 * math.pi)
    value, gradient = jax.vmap(jax.value_and_grad(gelu))(jnp.asarray(POINTS, jnp.float32))
    np.testing.assert_allclose(value, POINTS * below, rtol=0, atol=1e-6)
    np.testing.assert_allclose(gradient, below + POINTS * density, rtol=0, atol=1e-6)


def test_bfloat16_is_the_float32_result_rounded_once():
    x = jnp.asarray(POINTS, jnp.bfloat16)
    value, vjp = jax.vjp(gelu, x)
    value32, vjp32 = jax.vjp(gelu, x.astype(jnp.float32))
    np.testing.assert_array_equal(value, value32.astype(jnp.bfloat16))
    np.testing.assert_array_equal(vjp(x)[0], vjp32(x.astype(jnp.float32))[0].astype(jnp.bfloat16))


def test_softplus_and_its_derivatives_equal_those_of_jax():
    x = jnp.asarray([-np.inf, -200, -90, *POINTS, 90, 200, np.inf], jnp.float32)
    np.testing.assert_array_equal(softplus(x), jax.nn.softplus(x))
    slope, curvature = jax.grad(softplus), jax.grad(jax.grad(softplus))
    np.testing.assert_allclose(jax.vmap(slope)(x), jax.nn.sigmoid(x), rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(jax.vmap(curvature)(x), jax.vmap(jax.grad(jax.nn.sigmoid))(x), rtol=1e-6, atol=1e-30)
    assert jnp.isnan(softplus(jnp.float32(np.nan)))
