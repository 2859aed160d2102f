"""All implementations of the depthwise convolution have equal values and gradients."""

import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mambaout_jax.ops import depthwise_conv2d, use_kernels
from mambaout_jax.ops.pallas import bands, depthwise_tpu
from tests.marks import slow_but

ROOT = Path(__file__).parents[2]

# (batch, height, width, channels), (kh, kw): the kernels in use, odd sizes, maps smaller than the kernel, a
# map of one pixel, rows that the chunks of the kernel gradient do not divide.
SHAPES = [
    ((2, 14, 14, 8), (7, 7)),
    ((2, 7, 7, 16), (7, 7)),
    ((1, 9, 11, 5), (5, 5)),
    ((3, 8, 6, 4), (3, 3)),
    ((2, 4, 20, 3), (5, 5)),
    ((2, 3, 2, 4), (7, 7)),
    ((2, 1, 1, 4), (7, 7)),
    ((2, 6, 5, 4), (3, 7)),
    ((2, 6, 5, 4), (1, 1)),
]


def _data(shape, sides, dtype="float32"):
    rng = np.random.default_rng(0)
    shapes = (shape, (*sides, 1, shape[-1]), shape[-1:], shape)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


@partial(jax.jit, static_argnums=0)
def _value_and_gradients(impl, x, kernel, bias, dy):
    y, vjp = jax.vjp(partial(depthwise_conv2d, impl=impl), x, kernel, bias)
    return y, *vjp(dy)


def _assert_close(actual, expected, relative):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (e.shape, e.dtype)
        a, e = np.asarray(a, np.float32), np.asarray(e, np.float32)
        np.testing.assert_allclose(a, e, rtol=0, atol=relative * np.abs(e).max())


@pytest.mark.parametrize(("shape", "sides"), SHAPES)
def test_value_and_gradients_equal_those_of_the_grouped_convolution(shape, sides):
    data = _data(shape, sides)
    actual = _value_and_gradients("shift", *data)
    _assert_close(actual, _value_and_gradients("lax", *data), 1e-5)


@pytest.mark.parametrize("sides", [(3, 3), (5, 5), (7, 7)])
def test_bfloat16_is_the_float32_result_rounded_once(sides):
    data = _data((2, 14, 9, 8), sides, "bfloat16")
    exact = _value_and_gradients("lax", *(a.astype(jnp.float32) for a in data))
    actual = _value_and_gradients("shift", *data)
    _assert_close(actual, [a.astype(jnp.bfloat16) for a in exact], 2**-8)
    _assert_close(actual, _value_and_gradients("lax", *data), 2**-5)


def test_one_pixel_equals_the_formula():
    x, kernel, bias, _ = _data((1, 5, 6, 2), (3, 5))
    y = depthwise_conv2d(x, kernel, bias, impl="shift")
    expected = bias + sum(kernel[i, j, 0] * x[0, 2 + i - 1, 3 + j - 2] for i in range(3) for j in range(5))
    np.testing.assert_allclose(y[0, 2, 3], expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["shift", "auto", "pallas"])
def test_vmap_equals_a_loop(impl):
    xs, kernel, bias, dys = _data((3, 2, 6, 7, 4), (3, 3))

    def run(x, dy):
        return _value_and_gradients(impl, x, kernel, bias, dy)

    looped = [run(x, dy) for x, dy in zip(xs, dys, strict=True)]
    _assert_close(jax.vmap(run)(xs, dys), jax.tree.map(lambda *a: jnp.stack(a), *looped), 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["shift", "auto"])
def test_recomputing_equals_storing(impl):
    x, kernel, _, dy = _data((2, 6, 7, 4), (5, 5))

    def loss(op):
        return jax.jit(jax.grad(lambda x, kernel: jnp.vdot(op(jnp.tanh(op(x, kernel)), kernel), dy), (0, 1)))

    def op(x, kernel):
        return depthwise_conv2d(x, kernel, impl=impl)

    _assert_close(loss(jax.checkpoint(op))(x, kernel), loss(op)(x, kernel), 1e-6)


# (batch, height, width, channels), size: padded images and lanes, two blocks of each, rows of two runs of columns, a
# map smaller than the kernel.
KERNEL_SHAPES = [((3, 4, 5, 6), 3), ((9, 3, 4, 130), 3), ((2, 3, 20, 4), 5), ((1, 3, 2, 4), 7)]


@pytest.mark.parametrize(("shape", "size"), slow_but(KERNEL_SHAPES[:1], KERNEL_SHAPES))
def test_kernels_equal_the_grouped_convolution(shape, size):
    data = _data(shape, (size, size))
    _assert_close(_value_and_gradients("pallas", *data), _value_and_gradients("lax", *data), 1e-5)


@pytest.mark.slow
def test_kernels_of_bfloat16_equal_the_float32_result_rounded_once():
    data = _data((3, 4, 5, 6), (3, 3), "bfloat16")
    exact = _value_and_gradients("lax", *(a.astype(jnp.float32) for a in data))
    actual = _value_and_gradients("pallas", *data)
    _assert_close(actual, [a.astype(jnp.bfloat16) for a in exact], 2**-8)


@pytest.mark.slow
@pytest.mark.parametrize("height", [6, 7, 9])
def test_bands_of_rows_equal_whole_maps(height, monkeypatch):
    data = _data((2, height, 5, 4), (5, 5))
    expected = _value_and_gradients("lax", *data)
    monkeypatch.setattr(bands, "_LEAST_VMEM", 3 * 2**18)
    assert depthwise_tpu.band_of(data[0].shape, 5, "float32").halo > 0
    _assert_close(jax.jit(partial(_value_and_gradients.__wrapped__, "pallas"))(*data), expected, 1e-5)


def test_kernels_are_not_used_for_other_dtypes():
    traced = jax.jit(partial(_value_and_gradients.__wrapped__, "auto")).trace(*_data((8, 6, 7, 4), (3, 3), "float16"))
    assert "tpu_custom_call" not in traced.lower(lowering_platforms=("tpu",)).as_text()


# (platform, batch, kernels) -> convolutions and kernels: those for TPUs need half a block of images.
LOWERED = [
    ("cpu", 8, "auto", 0, 0),
    ("cuda", 8, "auto", 3, 0),
    ("tpu", 8, "auto", 0, 3),
    ("tpu", 8, "xla", 3, 0),
    ("tpu", 2, "auto", 3, 0),
    ("tpu", 2, "pallas", 0, 3),
]


@pytest.mark.parametrize(("platform", "batch", "kernels", "convolutions", "calls"), LOWERED)
def test_auto_is_resolved_by_the_platform_of_lowering(platform, batch, kernels, convolutions, calls):
    with use_kernels(kernels):
        traced = jax.jit(partial(_value_and_gradients.__wrapped__, "auto")).trace(*_data((batch, 6, 7, 4), (3, 3)))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.convolution") == convolutions
    assert text.count("tpu_custom_call") == calls


@pytest.mark.parametrize(
    ("sides", "impl", "message"),
    [((4, 3), "auto", "4x3; expected odd"), ((3, 2), "lax", "3x2"), ((3, 3), "fft", "'fft'")],
)
def test_invalid_kernels_and_implementations_are_named(sides, impl, message):
    with pytest.raises(ValueError, match=message):
        depthwise_conv2d(jnp.zeros((1, 6, 6, 4)), jnp.zeros((*sides, 1, 4)), impl=impl)


@pytest.mark.run
def test_a_sharded_batch_costs_one_all_reduce_and_gives_equal_results():
    """Run on eight devices in a separate process, because the number of devices is fixed when JAX starts."""
    program = """
        import jax, numpy as np
        from jax.sharding import NamedSharding, PartitionSpec as P
        from tests.ops.test_depthwise import _assert_close, _data, _value_and_gradients

        jax.config.update("jax_num_cpu_devices", 8)
        data = _data((16, 7, 9, 8), (5, 5))
        mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        specs = [P("data"), P(), P(), P("data")]
        placed = [jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in zip(data, specs)]
        compiled = _value_and_gradients.lower("shift", *placed).compile()
        text = compiled.as_text()
        assert text.count(" all-reduce(") == 1, text
        assert " all-gather(" not in text and " all-to-all(" not in text, text
        _assert_close(jax.device_get(compiled(*placed)), _value_and_gradients("lax", *data), 1e-5)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
