"""The kernels compile for v4, v5e, v5p and v6e at the sizes of MambaOut-Tiny, where they apply."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mambaout_jax import distributed
from mambaout_jax.ops import GatedCNNWeights, depthwise_conv2d, gated_cnn_block

BATCH, STAGES = 64, ((56, 96), (28, 192), (14, 384), (7, 576))


def gradients(function):
    return jax.grad(lambda *arguments: function(*arguments).astype(jnp.float32).sum(), argnums=(0, 1))


def block(x, weights):
    return gated_cnn_block(x, weights, eps=1e-6, dtype=x.dtype)


# No stage of MambaOut-Tiny fits into the VMEM of a v4.
@pytest.mark.nightly
@pytest.mark.parametrize(("topology", "blocks"), [("v4:2x2x1", 0), ("v5e:1x1", 4), ("v5p:2x2x1", 4), ("v6e:1x1", 4)])
def test_kernels_compile(topology, blocks):
    pytest.importorskip("libtpu")
    from mambaout_jax.plan.compiler import compile_for_tpu, tpu_devices

    mesh = distributed.make_mesh(devices=tpu_devices(topology))
    whole, rows = NamedSharding(mesh, PartitionSpec()), distributed.batch_sharding(mesh)

    def shape(*sides, dtype=jnp.float32, sharding=whole):
        return jax.ShapeDtypeStruct(sides, dtype, sharding=sharding)

    found = 0
    for side, dim in STAGES:
        hidden, batch = 8 * dim // 3, BATCH * math.prod(mesh.shape.values())
        x = shape(batch, side, side, dim, dtype=jnp.bfloat16, sharding=rows)
        kernel = shape(7, 7, 1, dim)
        weights = GatedCNNWeights(
            *(shape(dim), shape(dim), shape(dim, 2 * hidden), shape(2 * hidden), kernel, shape(dim)),
            *(shape(hidden, dim), shape(dim)),
        )
        with jax.set_mesh(mesh):
            of_block = compile_for_tpu(jax.jit(gradients(block)).lower(x, weights)).as_text()
            of_conv = compile_for_tpu(jax.jit(gradients(depthwise_conv2d)).lower(x, kernel)).as_text()
        found += "gated_cnn_products" in of_block
        assert "depthwise_gradients" in of_conv
    assert found == blocks
