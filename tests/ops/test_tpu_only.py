"""Kernels for TPUs are part of programs that other platforms run too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from mambaout_jax.ops import depthwise_conv2d, selective_scan

PLATFORMS = ("cpu", "cuda", "tpu")


def _draw(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def _scan(x):
    a, projections = -jnp.ones((4, 16)), _draw(16, 8, 16)
    return selective_scan(x, jnp.abs(x), a, projections, projections)[0]


def _convolve(x):
    return depthwise_conv2d(x, _draw(3, 3, 1, 4))


def _gradient(op):
    return jax.grad(lambda x: jnp.sin(op(x)).sum())


# With batches that the kernels are used for, and the number of kernels.
OPS = {
    "depthwise": (_convolve, (16, 6, 6, 4), 1),
    "scan": (_scan, (16, 8, 4), 1),
    "vmap": (jax.vmap(_convolve), (2, 16, 6, 6, 4), 1),
    "gradient of depthwise": (_gradient(_convolve), (16, 6, 6, 4), 2),
    "gradient of scan": (_gradient(_scan), (16, 8, 4), 2),
}


@pytest.mark.parametrize("name", OPS)
def test_a_program_for_all_platforms_has_the_kernels_and_runs_on_cpu(name):
    op, shape, kernels = OPS[name]
    program = export.export(jax.jit(op), platforms=PLATFORMS)(jax.ShapeDtypeStruct(shape, jnp.float32))
    assert program.mlir_module().count("@tpu_custom_call") == kernels
    x = _draw(*shape)
    np.testing.assert_array_equal(export.deserialize(program.serialize()).call(x), jax.jit(op)(x))
