"""Normalization layers of the last axis compute the published formulas, with the given eps."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mambaout_jax.models.layers.norm import LayerNorm, RMSNorm

# Inputs are so small that eps decides the result.
SCALE = 1e-2
RNG = np.random.default_rng(0)
X, WEIGHT, BIAS = SCALE * RNG.normal(size=(2, 3, 8)), RNG.normal(size=8), RNG.normal(size=8)


def layer_norm(x, eps):
    centered = x - x.mean(-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + eps) * WEIGHT + BIAS


def rms_norm(x, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * WEIGHT


# The defaults: timm's for LayerNorm, Mamba's for RMSNorm.
LAYERS = {"layer": (LayerNorm, layer_norm, 1e-6), "rms": (RMSNorm, rms_norm, 1e-5)}


@pytest.mark.parametrize("options", [{}, {"eps": 1e-3}], ids=["default", "given"])
@pytest.mark.parametrize("name", LAYERS)
def test_output_equals_the_formula_with_the_eps(name, options):
    build, formula, default = LAYERS[name]
    layer = build(8, **options)
    params = {"weight": jnp.float32(WEIGHT)} | ({"bias": jnp.float32(BIAS)} if name == "layer" else {})
    expected = formula(X, options.get("eps", default))
    y = nnx.merge(nnx.split(layer)[0], params)(jnp.float32(X))
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)
