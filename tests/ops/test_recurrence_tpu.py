import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mambaout_jax.ops import selective_scan, use_kernels
from mambaout_jax.ops.pallas import recurrence_tpu
from mambaout_jax.ops.recurrence import _backward, _forward, _loop, chunk_shape

ROOT = Path(__file__).parents[2]


def draw(batch, length, channels, states, groups=1):
    rng = np.random.default_rng(length)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return (
        normal(batch, length, channels),
        jax.nn.softplus(normal(batch, length, channels)),
        -jnp.exp(normal(channels, states)),
        normal(batch, length, groups, states),
        normal(batch, length, groups, states),
        normal(batch, channels, states),
    )


def assert_close(actual, expected):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.shape == e.shape
        np.testing.assert_allclose(a, e, rtol=0, atol=2e-5 * np.abs(e).max())


# One chunk and several, with full and padded lanes, rows and groups.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("length", "channels", "states", "groups"),
    [
        (5, 6, 3, 1),
        pytest.param(150, 260, 16, 2, marks=pytest.mark.slow),
        pytest.param(16, 128, 96, 1, marks=pytest.mark.slow),
    ],
)
def test_kernels_equal_the_loop(length, channels, states, groups):
    inputs = draw(2, length, channels, states, groups)
    shape = chunk_shape(length)
    y, last, borders = recurrence_tpu.forward(*inputs, shape=shape, interpret=True)
    expected = _forward(_loop, *inputs)
    assert_close((y, last, borders), expected)
    cotangents = draw(2, length, channels, states)
    rest = (expected[2], cotangents[0], cotangents[5])
    gradients = recurrence_tpu.backward(*inputs, *rest, shape=shape, interpret=True)
    assert_close(gradients, _backward(_loop, *inputs, *rest))


def lowered(function, *arguments, platform):
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.slow
def test_only_programs_for_tpus_contain_the_kernels():
    u, delta, A, B, C, _ = draw(2, 20, 6, 3)

    def gradient(u):
        return jax.grad(lambda u: selective_scan(u, delta, A, B, C).sum())(u)

    text = lowered(gradient, u, platform="tpu")
    assert "selective_scan_forward" in text
    assert "selective_scan_backward" in text
    for platform in ("cpu", "cuda"):
        assert "selective_scan_" not in lowered(gradient, u, platform=platform)
    with use_kernels("xla"):
        assert "selective_scan_" not in lowered(gradient, u, platform="tpu")


@pytest.mark.slow
def test_too_many_states_and_constant_projections_use_the_general_implementation():
    u, delta, A, B, C, _ = draw(1, 20, 2, 100)
    assert "selective_scan_forward" not in lowered(lambda u: selective_scan(u, delta, A, B, C), u, platform="tpu")
    constant = jnp.ones_like(A)
    assert "selective_scan_forward" not in lowered(
        lambda u: selective_scan(u, delta, A, constant, C), u, platform="tpu"
    )


@pytest.mark.slow
def test_kernels_are_mapped_over_the_devices_of_a_mesh():
    u, delta, A, B, C, _ = draw(2, 20, 6, 3)

    def program():
        return str(jax.make_jaxpr(lambda u: selective_scan(u, delta, A, B, C))(u))

    assert "shard_map" not in program()
    with jax.set_mesh(jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))):
        assert "shard_map" in program()


EIGHT_DEVICES = """
import jax
from functools import partial
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from mambaout_jax.ops.pallas import recurrence_tpu
from mambaout_jax.ops.recurrence import _backward, _forward, _loop, chunk_shape
from tests.ops.test_recurrence_tpu import assert_close, draw

for batch in (8, 6):
    inputs, cotangents = draw(batch, 12, 6, 3), draw(batch, 12, 6, 3)
    expected = _forward(_loop, *inputs)
    rest = (expected[2], cotangents[0], cotangents[5])
    gradients = _backward(_loop, *inputs, *rest)
    for shape, names in (((8,), ("data",)), ((2, 4), ("data", "model"))):
        mesh = jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape))
        with jax.set_mesh(mesh):
            run = partial(recurrence_tpu.forward, shape=chunk_shape(12), interpret=True)
            assert_close(jax.jit(run)(*inputs), expected)
            run = partial(recurrence_tpu.backward, shape=chunk_shape(12), interpret=True)
            assert_close(jax.jit(run)(*inputs, *rest), gradients)
"""


@pytest.mark.run
def test_eight_devices_equal_one():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [sys.executable, "-c", EIGHT_DEVICES]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
