"""The gradient of the strided convolution equals that of XLA's convolution, for both implementations."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mambaout_jax.ops import strided_conv2d


def _convolution(x, kernel, stride):
    top, left = kernel.shape[0] // 2, kernel.shape[1] // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((top, top), (left, left)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@partial(jax.jit, static_argnums=(0, 1))
def _value_and_gradients(op, stride, x, kernel, weight):
    # The square makes the cotangent depend on the value, so that a gradient at another point is detected.
    def loss(x, kernel):
        y = op(x, kernel, stride)
        return jnp.sum(weight[: y.size].reshape(y.shape) * y * y), y

    return jax.value_and_grad(loss, (0, 1), has_aux=True)(x, kernel)


def _data(size, sides, dtype):
    rng = np.random.default_rng(0)
    shapes = ((2, *size, 3), (*sides, 3, 4), (2 * 9 * 9 * 4,))
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


@pytest.mark.parametrize(
    ("size", "sides", "stride"),
    [((8, 8), (3, 3), 2), ((9, 7), (3, 3), 2), ((1, 2), (3, 3), 2), ((9, 8), (5, 3), 3), ((5, 4), (3, 3), 1)],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2**-5)])
def test_value_and_gradients_equal_those_of_the_convolution(size, sides, stride, dtype, tolerance):
    data = _data(size, sides, dtype)
    actual, expected = (_value_and_gradients(op, stride, *data) for op in (strided_conv2d, _convolution))
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (e.shape, e.dtype)
        a, e = np.asarray(a, np.float32), np.asarray(e, np.float32)
        np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * np.abs(e).max())


@pytest.mark.parametrize(("platform", "convolutions"), [("cpu", 1), ("tpu", 3), ("cuda", 3)])
def test_only_programs_for_cpu_compute_the_gradient_from_patches(platform, convolutions):
    traced = _value_and_gradients.trace(strided_conv2d, 2, *_data((8, 8), (3, 3), "float32"))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.convolution") == convolutions
