"""The block computed by kernels equals the block computed by XLA's operations."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mambaout_jax.ops import GatedCNNWeights, gated_cnn_block, use_kernels
from mambaout_jax.ops.gated_cnn import _band_of
from mambaout_jax.ops.pallas import bands

EPS = 1e-6


def draw(shape, hidden, conv, size=3, dtype="float32", layer_scale=False):
    """Draw x, weights, a scale of branches with zeros, and a gradient of the result."""
    rng = np.random.default_rng(0)
    d = shape[-1]
    shapes = (d,), (d,), (d, 2 * hidden), (2 * hidden,), (size, size, 1, conv), (conv,), (hidden, d), (d,), (d,)
    weights = [jnp.asarray(0.3 * rng.normal(size=shape), jnp.float32) for shape in shapes[: 8 + layer_scale]]
    x, dy = (jnp.asarray(rng.normal(size=shape), dtype) for _ in range(2))
    scale = jnp.asarray(1.25 * (np.arange(len(x)) % 3 > 0), jnp.float32)
    return x, GatedCNNWeights(*weights), scale, dy


@partial(jax.jit, static_argnums=0)
def value_and_gradients(impl, x, weights, scale, dy):
    def run(x, weights):
        return gated_cnn_block(x, weights, scale, eps=EPS, dtype=x.dtype, impl=impl)

    y, vjp = jax.vjp(run, x, weights)
    return y, vjp(dy)


def assert_close(actual, expected, relative):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (e.shape, e.dtype)
        a, e = np.asarray(a, np.float32), np.asarray(e, np.float32)
        np.testing.assert_allclose(a, e, rtol=0, atol=relative * np.abs(e).max())


# Odd sizes; padded images, lanes and hidden channels; identity channels in the lanes of the convolved ones and in lanes
# of their own; all channels convolved; kernels larger than the map.
CASES = [
    pytest.param((3, 4, 5, 6), 10, 6, 3, id="identity channels share lanes with convolved ones"),
    pytest.param((9, 3, 4, 5), 300, 7, 3, id="identity channels have lanes of their own"),
    pytest.param((2, 3, 3, 4), 140, 140, 3, id="all channels are convolved"),
    pytest.param((2, 2, 17, 4), 8, 4, 5, id="rows of several runs"),
    pytest.param((1, 2, 3, 4), 8, 4, 7, id="a kernel larger than the map"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "hidden", "conv", "size"), CASES)
def test_kernels_equal_the_operations(shape, hidden, conv, size):
    data = draw(shape, hidden, conv, size, layer_scale=size == 3)
    assert_close(value_and_gradients("pallas", *data), value_and_gradients("xla", *data), 1e-5)


@pytest.mark.slow
def test_kernels_of_bfloat16_equal_float32_up_to_rounding():
    data = draw((3, 4, 5, 6), 10, 6, dtype="bfloat16")
    x, weights, scale, dy = data
    exact = value_and_gradients("xla", x.astype(jnp.float32), weights, scale, dy.astype(jnp.float32))
    actual = value_and_gradients("pallas", *data)
    assert_close(jax.tree.map(lambda a: a.astype(jnp.float32), actual), exact, 0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("height", "memory"), [(8, 2.6), (12, 2.6)])
def test_bands_of_rows_equal_whole_maps(height, memory, monkeypatch):
    data = draw((3, height, 5, 6), 10, 6)
    expected = value_and_gradients("xla", *data)
    assert _band_of(*data[:2]).halo == 0
    monkeypatch.setattr(bands, "_LEAST_VMEM", int(memory * 2**20))
    band = _band_of(*data[:2])
    assert band.halo > 0
    assert height % band.rows == 0
    assert_close(jax.jit(partial(value_and_gradients.__wrapped__, "pallas"))(*data), expected, 1e-5)


def kernels_in(function, *arguments):
    return str(jax.make_jaxpr(function)(*arguments)).count("pallas_call")


def test_kernels_are_used_where_they_are_chosen():
    x, weights, *_ = draw((3, 4, 5, 6), 10, 6)

    def count(**options):
        return kernels_in(partial(gated_cnn_block, eps=EPS, dtype=jnp.float32, **options), x, weights)

    assert count() == count(impl="xla") == 0
    assert count(impl="pallas") > 0
    with use_kernels("pallas"):
        assert count() == count(impl="pallas")
        assert count(impl="xla") == 0
    with use_kernels("xla"), use_kernels("auto"):
        assert count() == 0
        assert count(impl="pallas") > 0


@pytest.mark.parametrize(("value", "used"), [("pallas", True), ("xla", False), ("", False)])
def test_the_environment_chooses_for_models_that_do_not(value, used, monkeypatch):
    x, weights, *_ = draw((3, 4, 5, 6), 10, 6)
    block = partial(gated_cnn_block, eps=EPS, dtype=jnp.float32)
    monkeypatch.setenv("MAMBAOUT_KERNELS", value)
    assert (kernels_in(block, x, weights) > 0) == used
    with use_kernels("xla"):
        assert kernels_in(block, x, weights) == 0


def test_unknown_choices_are_named(monkeypatch):
    x, weights, *_ = draw((3, 4, 5, 6), 10, 6)
    block = partial(gated_cnn_block, x, weights, eps=EPS, dtype=jnp.float32)
    with pytest.raises(ValueError, match="'fast'"):
        block(impl="fast")
    with pytest.raises(ValueError, match="needs GELU"):
        block(impl="pallas", act=jnp.tanh)
    with pytest.raises(ValueError, match="kernels is 'fast'"):
        use_kernels("fast")
    monkeypatch.setenv("MAMBAOUT_KERNELS", "fast")
    with pytest.raises(ValueError, match="MAMBAOUT_KERNELS is 'fast'"):
        block()
