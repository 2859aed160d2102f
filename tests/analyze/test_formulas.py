"""Each formula equals what a block that is written out, or the one of this package, does."""

import inspect
import math
from functools import partial

import jax
import jax.numpy as jnp
import pytest

import mambaout_jax as mo
from mambaout_jax.analyze import formulas
from mambaout_jax.analyze.ssm_need import GATED_CNN
from mambaout_jax.models import Functional, MambaBlock, ScanInfo
from mambaout_jax.models.macs import SCAN_MACS_PER_CHANNEL, SCAN_MACS_PER_STATE, count_macs
from mambaout_jax.ops import SCAN_ORDERS

DIMS_LENGTHS = [(32, 50), (48, 7), (64, 333)]


def spec(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def total(terms):
    return sum(terms.values())


def test_the_paper_s_numbers_come_out():
    assert [formulas.length_threshold(dim) for dim in (384, 768)] == [2304, 4608]
    sizes = [(224, 224), (800, 1280), (512, 2048)]
    assert [formulas.count_tokens(size, 16) for size in sizes] == [196, 4000, 4096]


@pytest.mark.slow
@pytest.mark.parametrize("side", [32, 33, 160, 223, 224, 225])
def test_tokens_are_those_of_strided_convolutions(side):
    model = mo.create_model("test_mambaout")
    variables = jax.eval_shape(model.init, jax.random.key(0))
    maps = jax.eval_shape(lambda v, x: model.apply(v, x, output="features"), variables, spec(1, side, side + 31, 3))
    found = [one.shape[1] * one.shape[2] for one in maps]
    assert found == [formulas.count_tokens((side, side + 31), info.stride) for info in model.feature_info]


def transformer_block(dim, length):
    def block(x, qkv, out, up, down):
        q, k, v = jnp.split(x @ qkv, 3, -1)
        x = x + jax.nn.softmax(q @ k.T) @ v @ out
        return x + jax.nn.gelu(x @ up) @ down

    return count_macs(
        block, spec(length, dim), spec(dim, 3 * dim), spec(dim, dim), spec(dim, 4 * dim), spec(4 * dim, dim)
    )


@pytest.mark.parametrize(("dim", "length"), DIMS_LENGTHS)
def test_equation_6_counts_a_transformer_block(dim, length):
    assert total(formulas.transformer_block_flops(dim, length)) == 2 * transformer_block(dim, length)
    full, causal = (formulas.transformer_block_flops(dim, length, causal=causal) for causal in (False, True))
    assert causal == {"weights": full["weights"], "attention": full["attention"] // 2}


@pytest.mark.parametrize(("dim", "length"), DIMS_LENGTHS)
def test_ratio_is_that_of_the_two_terms_and_one_at_the_threshold(dim, length):
    terms = formulas.transformer_block_flops(dim, length)
    assert formulas.length_ratio(dim, length) == pytest.approx(terms["attention"] / terms["weights"])
    assert formulas.length_ratio(dim, formulas.length_threshold(dim)) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("expansion_ratio", "conv_ratio", "kernel_size", "scan_order"),
    [(8 / 3, 1.0, 7, None), (3.0, 1.25, 5, None), (3.0, 1.25, 5, "causal"), (8 / 3, 1.0, 7, "cross")],
)
def test_gated_cnn_block_counts_what_a_model_does_for_one_block_more(
    expansion_ratio, conv_ratio, kernel_size, scan_order
):
    options = {"expansion_ratio": expansion_ratio, "conv_ratio": conv_ratio, "kernel_size": kernel_size}
    mixing = {} if scan_order is None else {"token_mixer": "conv_ssm", "scan_order": scan_order}

    def macs(depth):
        model = mo.create_model("test_mambaout", depths=(depth,), dims=(16,), **options, **mixing)
        return count_macs(model.apply, jax.eval_shape(model.init, jax.random.key(0)), spec(1, 32, 48, 3))

    tokens = formulas.count_tokens((32, 48), 4)
    directions, channels = 0 if scan_order is None else len(SCAN_ORDERS[scan_order]), int(conv_ratio * 16)
    terms = formulas.gated_cnn_block_flops(16, tokens, scans=ScanInfo(directions, channels, 16), **options)
    scan = tokens * channels * directions * (SCAN_MACS_PER_STATE * 16 + SCAN_MACS_PER_CHANNEL)
    assert total(terms) - terms.get("scan", 0) == 2 * (macs(2) - macs(1) - scan)


@pytest.mark.parametrize(("dim", "length"), DIMS_LENGTHS)
def test_mamba_block_counts_the_products_of_the_block(dim, length):
    block = Functional(MambaBlock(dim))
    variables = jax.eval_shape(block.init, jax.random.key(0))
    terms = formulas.mamba_block_flops(dim, length)
    products = sum(terms[name] for name in ("in_proj", "x_proj", "dt_proj", "out_proj"))
    # In the step form, the only matrix products are those with weights, next to the step of the scan.
    state = jax.eval_shape(lambda: MambaBlock(dim).initial_state(1))
    step = partial(block.apply, method="step")
    scan = formulas.EXPAND * dim * (SCAN_MACS_PER_STATE * formulas.D_STATE + SCAN_MACS_PER_CHANNEL)
    assert products == 2 * length * (count_macs(step, variables, state, spec(1, dim)) - scan)
    shapes = jax.tree.map(lambda leaf: leaf.shape, variables["params"])
    assert products == 2 * length * sum(
        math.prod(shape)
        for shape in (
            shapes["in_proj"]["weight"],
            shapes["ssm"]["x_proj"]["weight"],
            shapes["ssm"]["dt_proj"]["weight"],
            shapes["out_proj"]["weight"],
        )
    )
    assert terms["conv"] == 2 * length * math.prod(shapes["conv1d"]["weight"])


def test_published_options_are_the_defaults_of_the_blocks():
    defaults = {name: option.default for name, option in inspect.signature(MambaBlock.__init__).parameters.items()}
    assert tuple(defaults[name] for name in ("d_state", "d_conv", "expand")) == (
        formulas.D_STATE,
        formulas.D_CONV,
        formulas.EXPAND,
    )
    published = mo.create_model("mambaout_tiny").options
    assert {name: published[name] for name in GATED_CNN} == GATED_CNN


def test_scan_counts_the_arithmetic_of_a_step():
    def step(h, delta, A, B, C, D, u):
        h = jnp.exp(delta[:, None] * A) * h + (delta * u)[:, None] * B[None]
        return (h * C[None]).sum(-1) + D * u, h

    inner, states = 2 * 24, 16
    jaxpr = jax.make_jaxpr(step)(
        *(
            spec(*shape)
            for shape in [(inner, states), (inner,), (inner, states), (states,), (states,), (inner,), (inner,)]
        )
    ).jaxpr
    count = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("mul", "add", "exp"):
            count += equation.outvars[0].aval.size
        elif equation.primitive.name == "reduce_sum":
            count += equation.invars[0].aval.size
    assert formulas.mamba_block_flops(24, 11)["scan"] == 11 * count


@pytest.mark.parametrize(("dim", "length"), DIMS_LENGTHS)
def test_memory_is_that_of_the_arrays(dim, length):
    state = jax.eval_shape(lambda: MambaBlock(dim).initial_state(1))
    assert formulas.state_numbers(dim) == sum(leaf.size for leaf in jax.tree.leaves(state))
    keys, values = jax.eval_shape(lambda x, w: jnp.split(x @ w, 2, -1), spec(length, dim), spec(dim, 2 * dim))
    assert formulas.cache_numbers(dim, length) == keys.size + values.size
    assert formulas.attention_matrix_numbers(length) == jax.eval_shape(lambda k: k @ k.T, keys).size
