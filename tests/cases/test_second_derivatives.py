"""Every op with a derivative of its own, and every model, has second derivatives."""

import ast
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mambaout_jax as mo
from mambaout_jax import ops
from mambaout_jax.models import ModelError
from mambaout_jax.models.layers import selective_ssm
from tests.marks import slow_but

OPS = Path(ops.__file__).parent


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def scan(x, impl="auto", length=100):
    steps = x.reshape(1, length, -1)
    channels = steps.shape[-1]
    A = -jnp.exp(0.1 * draw(channels, 3))
    B, C = draw(1, length, 3, seed=1), draw(1, length, 3, seed=2)
    return ops.selective_scan(steps, 0.3 * steps, A, B, C, None, steps, None, True, impl=impl)


def gated(x, impl):
    d, h, c = x.shape[-1], 6, 4
    shapes = (d,), (d,), (d, 2 * h), (2 * h,), (3, 3, 1, c), (c,), (h, d), (d,)
    weights = ops.GatedCNNWeights(*(0.5 * draw(*shape, seed=index) for index, shape in enumerate(shapes)))
    return ops.gated_cnn_block(x, weights, eps=0.1, dtype=jnp.float32, impl=impl)


# By file; each takes an array and has a custom derivative in it.
EXAMPLES = {
    "activations.py": (ops.gelu, (3, 4)),
    "conv.py": (
        lambda x: ops.conv2d(x, (1.0 + x[0, :3, :3, :2, None] ** 2) * jnp.ones((1, 1, 1, 4)), stride=(2, 1), groups=2),
        (1, 5, 4, 4),
    ),
    "depthwise.py": (lambda x: ops.depthwise_conv2d(x, 1.0 + x[0, :3, :3, None] ** 2), (1, 5, 4, 2)),
    "gated_cnn.py": (lambda x: gated(x, "pallas"), (2, 4, 3, 4)),
    "matmul.py": (lambda x: ops.matmul(x, x.T), (3, 4)),
    "norm.py": (lambda x: ops.layer_norm(x, 1 + x[0], x[1], 1e-5) + ops.rms_norm(x, x[0], 1e-5), (3, 4)),
    "recurrence.py": (scan, (1, 100, 2)),
    "roi_align.py": (
        lambda x: ops.roi_align(
            [x], jnp.array([[[3.0, 2, 17, 20]]]), jnp.zeros((1, 1), int), strides=(4,), output_size=2, sampling_ratio=2
        ),
        (1, 6, 6, 2),
    ),
    "strided.py": (lambda x: ops.strided_conv2d(x, 1.0 + x[0, :3, :3, :, None] ** 2, 2), (1, 6, 6, 2)),
}


def test_every_file_with_a_custom_derivative_is_listed():
    found = {
        path.name
        for path in OPS.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("custom_vjp", "custom_jvp")
    }
    assert found == set(EXAMPLES)


def objective(function):
    return lambda x: (function(x) ** 2).sum() / 10


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_product_with_the_hessian_is_the_difference_of_gradients(name):
    function, shape = EXAMPLES[name]
    x, v = draw(*shape), draw(*shape, seed=3)
    gradient = jax.jit(jax.grad(objective(function)))
    product = jax.jit(jax.grad(lambda x: (gradient(x) * v).sum()))(x)
    step = 3e-3
    expected = (gradient(x + step * v) - gradient(x - step * v)) / (2 * step)
    np.testing.assert_allclose(product, expected, rtol=0.02, atol=0.01 * float(jnp.abs(expected).max()))


@pytest.mark.slow
@pytest.mark.parametrize("length", [3, 130])
def test_second_derivatives_of_the_scan_equal_those_of_the_plain_loop(length):
    x, v = draw(1, length, 2), draw(1, length, 2, seed=3)

    def product(impl):
        gradient = jax.grad(objective(lambda x: scan(x, impl, length)))
        return jax.jit(jax.grad(lambda x: (gradient(x) * v).sum()))(x)

    expected = product("sequential")
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(product("auto"), expected, rtol=1e-3, atol=1e-5 * scale)
    gradient = jax.grad(objective(lambda x: scan(x, "auto", length)))
    forwards = jax.jit(lambda x, v: jax.jvp(gradient, (x,), (v,))[1])(x, v)
    np.testing.assert_allclose(forwards, expected, rtol=1e-3, atol=1e-5 * scale)


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_second_derivatives_of_the_scan_lower_for_every_platform(platform):
    gradient = jax.grad(objective(scan))
    traced = jax.jit(jax.grad(lambda x: (gradient(x) ** 2).sum())).trace(jnp.ones((1, 100, 2)))
    assert traced.lower(lowering_platforms=(platform,)).as_text()


SMALL = {"depths": (1, 1), "dims": (8, 8), "img_size": 32, "num_classes": 3}
MODELS = {
    "mambaout_femto": SMALL,
    "mamba_femto": SMALL,
    "vit_tiny_patch16_224": {"embed_dim": 8, "num_heads": 2, "depth": 1, "img_size": 32, "num_classes": 3},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_but(["vit_tiny_patch16_224"], list(MODELS), "nightly"))
def test_models_have_second_derivatives(name):
    model = mo.create_model(name, **MODELS[name])
    variables, images = model.init(jax.random.key(0)), draw(1, 32, 32, 3)
    gradient = jax.grad(lambda x: (model.apply(variables, x) ** 2).sum())
    penalty = jax.jit(jax.grad(lambda x: (gradient(x) ** 2).sum()))(images)
    assert float(jnp.abs(penalty).max()) > 0
    assert np.isfinite(penalty).all()


@pytest.mark.slow
def test_a_model_uses_the_chosen_implementation_of_the_scan(monkeypatch):
    used = []
    real = selective_ssm.selective_scan
    monkeypatch.setattr(
        selective_ssm, "selective_scan", lambda *args, impl, **how: used.append(impl) or real(*args, impl=impl, **how)
    )
    for impl in ops.SCAN_IMPLS:
        model = mo.create_model("mamba_femto", **SMALL, scan_impl=impl)
        jax.eval_shape(model.apply, model.shapes, jnp.ones((1, 32, 32, 3)))
    assert used == [impl for impl in ops.SCAN_IMPLS for _ in SMALL["depths"]]
    with pytest.raises(ModelError, match="scan_impl is 'fast'"):
        mo.create_model("mamba_femto", scan_impl="fast")
