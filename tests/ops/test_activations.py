"""GELU is exact."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from mambaout_jax.ops import gelu

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
