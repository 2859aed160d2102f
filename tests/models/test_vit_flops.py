"""Equation 6 of the paper is what the compiler and our own counter find in a block.

Reference: Yu and Wang, MambaOut, 2025: a block of width D with an MLP of 4 D takes 24 D^2 L + 4 D L^2 FLOPs at L
tokens, two for each multiply-add, norms, softmax and activations aside.
"""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from mambaout_jax.models.macs import count_macs
from mambaout_jax.models.vit.model import Block


def block(dim, num_tokens, *, causal=False):
    """Return a block as a function, and what it is called with."""
    module = Block(dim, dim // 64, mlp_ratio=4.0, causal=causal, dtype=jnp.dtype("float32"))
    graphdef, state = nnx.split(module)
    params = nnx.to_pure_dict(state)
    return (
        lambda params, x: nnx.merge(graphdef, params)(x),
        params,
        jax.ShapeDtypeStruct((1, num_tokens, dim), "float32"),
    )


def equation_6(dim, num_tokens):
    return 24 * dim**2 * num_tokens + 4 * dim * num_tokens**2


@pytest.mark.parametrize(("dim", "num_tokens"), [(192, 196), (384, 196), (384, 4096), (768, 1)])
@pytest.mark.parametrize("causal", [False, True])
def test_products_of_a_block_are_equation_6(dim, num_tokens, causal):
    # What is masked is computed all the same.
    assert 2 * count_macs(*block(dim, num_tokens, causal=causal)) == equation_6(dim, num_tokens)


@pytest.mark.optimized
@pytest.mark.parametrize(("dim", "num_tokens"), [(192, 196), (384, 784)])
def test_the_compiler_counts_equation_6(dim, num_tokens):
    function, *args = block(dim, num_tokens)
    flops = jax.jit(function).lower(*args).compile().cost_analysis()["flops"]
    # And, for each token and channel, some ten of norms and GELU; for each score, some five of the softmax.
    assert 1.0 < flops / equation_6(dim, num_tokens) < 1.05
