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


# Batches that the kernels are used for.
OPS = {
    "depthwise": (lambda x: depthwise_conv2d(x, _draw(3, 3, 1, 4)), (16, 6, 6, 4)),
    "scan": (_scan, (16, 8, 4)),
    "vmap": (jax.vmap(lambda x: depthwise_conv2d(x, _draw(3, 3, 1, 4))), (2, 16, 6, 6, 4)),
    "gradient": (jax.grad(lambda x: jnp.sin(depthwise_conv2d(x, _draw(3, 3, 1, 4))).sum()), (16, 6, 6, 4)),
}


@pytest.mark.parametrize("name", OPS)
def test_a_program_for_all_platforms_has_the_kernels_and_runs_on_cpu(name):
    op, shape = OPS[name]
    program = export.export(jax.jit(op), platforms=PLATFORMS)(jax.ShapeDtypeStruct(shape, jnp.float32))
    assert "tpu_custom_call" in program.mlir_module()
    x = _draw(*shape)
    np.testing.assert_array_equal(export.deserialize(program.serialize()).call(x), jax.jit(op)(x))
