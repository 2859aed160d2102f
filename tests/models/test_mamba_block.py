"""The Mamba block equals its reference, streams as it scans, and is causal with and without its SSM."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mambaout_jax.models import Functional, MambaBlock, ModelError
from mambaout_jax.weights import WeightsError, mamba_block_from_torch, mamba_block_to_torch
from tests.models import golden

CASES = golden.names("mamba_block__*")


def functional(*args, **options):
    """Build a block as functions of its variables."""
    return Functional(MambaBlock(*args, **options))


def drawn(block, scale=0.2):
    """Draw variables in which no parameter has its initial value."""
    variables = jax.jit(block.init)(jax.random.key(0))
    leaves, treedef = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(
        treedef, [leaf + scale * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    )


def initial_state(*args, **options):
    return MambaBlock(*args, **options).initial_state(2)


def sequences(length, channels=8, batch=2):
    return jax.random.normal(jax.random.key(2), (batch, length, channels))


def test_there_are_cases():
    assert len(CASES) == 3


@pytest.mark.parametrize("name", CASES)
def test_block_matches_reference(name):
    case = golden.load(name)
    block = functional(**case.options)
    variables = mamba_block_from_torch(block, case.state_dict)

    with jax.default_matmul_precision("highest"):
        output = jax.jit(block.apply)(variables, case.input)
    np.testing.assert_allclose(output, case.output, rtol=0, atol=case.atol)


@pytest.mark.parametrize("name", CASES)
def test_weights_go_back_as_they_came(name):
    case = golden.load(name)
    block = functional(**case.options)
    back = mamba_block_to_torch(block, mamba_block_from_torch(block, case.state_dict))
    assert back.keys() == case.state_dict.keys()
    for key, values in case.state_dict.items():
        np.testing.assert_array_equal(back[key], values)


def test_variables_of_another_block_are_refused():
    variables = functional(8, ssm=False).init(jax.random.key(0))
    with pytest.raises(WeightsError, match=r"the variables do not fit MambaBlock: .*A_log is missing"):
        mamba_block_to_torch(functional(8), variables)


def test_weights_that_do_not_fit_are_listed():
    case = golden.load(CASES[0])
    del case.state_dict["A_log"], case.state_dict["dt_proj.bias"]
    with pytest.raises(WeightsError, match=r"do not fit MambaBlock: A_log is missing; dt_proj\.bias is missing$"):
        mamba_block_from_torch(functional(**case.options), case.state_dict)


OPTIONS = [{}, {"d_conv": 1}, {"d_conv": 5, "d_state": 3, "bias": True, "conv_bias": False}, {"ssm": False}]


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_streaming_equals_the_whole(options):
    block = functional(8, **options)
    variables, x = drawn(block), sequences(11)
    state, step, outputs = initial_state(8, **options), jax.jit(partial(block.apply, method="step")), []
    shapes = jax.tree.map(jnp.shape, state)
    for t in range(11):
        y, state = step(variables, state, x[:, t])
        outputs.append(y)
    assert jax.tree.map(jnp.shape, state) == shapes
    for length in (1, 11):
        whole = jax.jit(block.apply)(variables, x[:, :length])
        np.testing.assert_allclose(jnp.stack(outputs[:length], 1), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_outside_of_jit_only_the_first_call_is_traced():
    block = functional(8)
    variables, x = drawn(block), sequences(2)
    first, second = x[:, 0], x[:, 1]
    whole = block.apply(variables, x)
    y, state = block.apply(variables, initial_state(8), first, method="step")
    np.testing.assert_allclose(y, whole[:, 0], rtol=1e-4, atol=1e-5)
    with jax.no_tracing(True):
        y, _ = block.apply(variables, state, second, method="step")
        block.apply(variables, x)
    np.testing.assert_allclose(y, whole[:, 1], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("ssm", "reach"), [(True, 10), (False, 4)])
def test_block_sees_the_past_alone_and_without_ssm_as_far_as_its_convolution(ssm, reach):
    block = functional(8, ssm=ssm)
    variables = drawn(block)
    gradient = jax.jit(jax.jacrev(lambda x: block.apply(variables, x).sum((0, 2))))(sequences(10, batch=1))
    seen = np.abs(gradient).sum((1, 3)) > 0
    np.testing.assert_array_equal(seen, np.tri(10, dtype=bool) & ~np.tri(10, k=-reach, dtype=bool))


@pytest.mark.slow
def test_the_pair_differs_by_the_ssm_alone():
    with_ssm, without = functional(8), functional(8, ssm=False)
    more, less = ({**block.init(jax.random.key(0))["params"]} for block in (with_ssm, without))
    ssm = more.pop("ssm")
    assert jax.tree.map(jnp.shape, more) == jax.tree.map(jnp.shape, less)
    # Where C is zero and D one, the SSM passes on what SiLU makes of the convolution.
    variables = drawn(with_ssm)
    params = variables["params"]
    rank = ssm["dt_proj"]["weight"].shape[0]
    params["ssm"]["x_proj"]["weight"] = params["ssm"]["x_proj"]["weight"].at[:, rank + 16 :].set(0)
    params["ssm"]["D"] = jnp.ones_like(ssm["D"])
    x = sequences(9)
    x_inner, z = jnp.split(x @ params["in_proj"]["weight"], 2, axis=-1)
    padded = jnp.pad(x_inner, ((0, 0), (3, 0), (0, 0)))
    taps = [padded[:, tap : tap + 9] * params["conv1d"]["weight"][tap][None] for tap in range(4)]
    conv = sum(taps) + params["conv1d"]["bias"][None, None]
    for block, mixed in ((with_ssm, jax.nn.silu(conv)), (without, conv)):
        expected = (mixed * jax.nn.silu(z)) @ params["out_proj"]["weight"]
        given = {"params": params if block is with_ssm else {k: v for k, v in params.items() if k != "ssm"}}
        given["batch_stats"] = {}
        np.testing.assert_allclose(jax.jit(block.apply)(given, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_initial_values_lie_within_pytorchs_bounds():
    params = functional(64, bias=True).init(jax.random.key(0))["params"]
    for layer, bound in (("in_proj", 64**-0.5), ("out_proj", 128**-0.5), ("conv1d", 4**-0.5)):
        for leaf in params[layer].values():
            assert 0.9 * bound < jnp.abs(leaf).max() <= bound
    assert params["ssm"]["dt_proj"]["weight"].shape == (4, 128)  # of d_model, not of the inner width


@pytest.mark.slow
def test_bfloat16_computes_low_and_remembers_states_high():
    low, high = functional(32, dtype="bfloat16"), functional(32)
    variables, x = drawn(low, 0.05), sequences(40, 32)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    y, exact = jax.jit(low.apply)(variables, x), jax.jit(high.apply)(variables, x)
    assert y.dtype == jnp.bfloat16
    assert 0 < float(jnp.abs(y.astype(jnp.float32) - exact).max()) < 0.05 * float(jnp.abs(exact).max())
    y, state = low.apply(variables, initial_state(32, dtype="bfloat16"), x[:, 0], method="step")
    assert (y.dtype, state.window.dtype, state.ssm.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)


def test_no_decay_names_parameters_that_are_there():
    block = functional(8)
    ssm = block.init(jax.random.key(0))["params"]["ssm"]
    assert block.no_decay == {("ssm", "A_log")}
    assert "A_log" in ssm
    assert functional(8, ssm=False).no_decay == frozenset()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"d_model": 0}, "d_model is 0; expected a positive integer"),
        ({"d_conv": 2.5}, "d_conv is 2.5"),
        ({"d_state": 0}, "d_state is 0"),
        ({"dt_rank": 0}, "dt_rank is 0"),
        ({"expand": 0.01}, "expand is 0.01; expected a finite number of at least 1/8"),
        ({"expand": True}, "expand is True; expected a finite number"),
        ({"dtype": "float16"}, "dtype is 'float16'; expected one of float32, bfloat16"),
    ],
)
def test_option_out_of_range_is_named(options, words, no_type_checks):
    with pytest.raises(ModelError, match=words):
        MambaBlock(**{"d_model": 8, **options})


@pytest.mark.parametrize("shape", [(2, 8), (2, 0, 8), (2, 5, 7)])
def test_sequences_that_do_not_fit_are_refused(shape, no_type_checks):
    block = functional(8)
    variables = block.init(jax.random.key(0))
    with pytest.raises(ModelError, match=r"expected \(batch, length >= 1, 8\)"):
        block.apply(variables, jnp.zeros(shape))
    with pytest.raises(ModelError, match=r"expected \(batch, 8\)"):
        block.apply(variables, initial_state(8), jnp.zeros((2, 7)), method="step")
