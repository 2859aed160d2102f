"""MambaOut with a state space model: parameter counts, causality, and equality with MambaOut without it."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mambaout_jax as mo
from mambaout_jax.models import find_family
from mambaout_jax.models.macs import count_model_macs
from mambaout_jax.models.mambaout import gated_cnn
from mambaout_jax.models.mambaout.gated_cnn import GatedCNNBlock
from mambaout_jax.ops import SCAN_ORDERS, gated_cnn_block
from tests.marks import slow_but
from tests.models.test_mambaout import images, logits_of, noisy, small_model

MAMBAS = [name for name in mo.list_models() if name.startswith("mamba_")]
# Scans take long to compile.
ONE_BLOCK = {"depths": (1,), "dims": (8,)}


def mamba(**options):
    return small_model(token_mixer="conv_ssm", **options)


def ssm_sizes(channels, states=16):
    """Return the parameters of one state space model, and its multiply-adds for each place of a map."""
    rank = -(-channels // 16)
    products = channels * (rank + 2 * states) + rank * channels
    return products + channels + channels * states + channels, products + channels * (9 * states + 1)


def test_mamba_is_mambaout_with_a_state_space_model_and_nothing_else():
    variants = find_family("mamba_femto").variants
    assert len(MAMBAS) == 5
    for name in MAMBAS:
        variant, twin = variants[name], variants[name.replace("mamba_", "mambaout_")]
        assert variant.options == {**twin.options, "token_mixer": "conv_ssm", "scan_order": "causal"}
        assert (variant.size, variant.crop_pct, dict(variant.top1)) == (twin.size, twin.crop_pct, {})


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_but(["mamba_femto"], MAMBAS))
def test_counts_are_those_of_the_twin_and_of_a_state_space_model_in_each_block(name):
    twin = name.replace("mamba_", "mambaout_")
    options = find_family(name).variants[name].options
    pairs = zip(options["depths"], options["dims"], strict=True)
    stages = [(depth, dim, (56 // 2**index) ** 2) for index, (depth, dim) in enumerate(pairs)]
    model, twins_model = mo.create_model(name), mo.create_model(twin)
    assert model.num_params == twins_model.num_params + sum(depth * ssm_sizes(dim)[0] for depth, dim, _ in stages)
    assert count_model_macs(model) == count_model_macs(twins_model) + sum(
        depth * length * ssm_sizes(dim)[1] for depth, dim, length in stages
    )


@pytest.mark.slow
@pytest.mark.parametrize("scan_order", SCAN_ORDERS)
def test_each_direction_has_parameters_of_its_own(scan_order):
    counts = [
        sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0))))
        for model in (mamba(scan_order=scan_order), small_model())
    ]
    assert counts[0] - counts[1] == len(SCAN_ORDERS[scan_order]) * (ssm_sizes(8)[0] + 2 * ssm_sizes(16)[0])
    params = mamba(scan_order=scan_order).init(jax.random.key(0))["params"]
    ssm = params["stages"][1]["blocks"][0]["ssm"]
    assert list(ssm) == list(range(len(SCAN_ORDERS[scan_order])))
    assert len({np.asarray(one["x_proj"]["weight"]).tobytes() for one in ssm.values()}) == len(ssm)
    shapes = jax.tree.map(jnp.shape, ssm[0])
    assert shapes == {
        "x_proj": {"weight": (16, 33)},
        "dt_proj": {"weight": (1, 16), "bias": (16,)},
        "A_log": (16, 16),
        "D": (16,),
    }


def block(scan_order, dim=8):
    """Return a function that makes a block of its parameters, and drawn parameters."""
    module = GatedCNNBlock(
        dim,
        expansion_ratio=2.0,
        conv_ratio=1.0,
        kernel_size=3,
        act_layer="gelu",
        ls_init_value=None,
        scan_order=scan_order,
        dtype=jnp.dtype("float32"),
    )
    graphdef, state = nnx.split(module)
    flat = dict(nnx.to_flat_state(state))
    keys = jax.random.split(jax.random.key(5), len(flat))
    params = {path: jax.random.normal(key, flat[path].shape) * 0.3 for path, key in zip(flat, keys, strict=True)}
    return (lambda params: nnx.merge(graphdef, params)), nnx.traversals.unflatten_mapping(params)


def with_silu(*arguments, **options):
    return gated_cnn_block(*arguments, **options | {"mixer": jax.nn.silu})


@pytest.mark.slow
@pytest.mark.parametrize("scan_order", ["causal", "cross"])
def test_without_C_and_with_D_one_it_is_the_convolution_with_silu_after_it(scan_order):
    merge, params = block(scan_order)
    for ssm in params["ssm"].values():
        ssm["x_proj"]["weight"] = ssm["x_proj"]["weight"].at[:, -16:].set(0)
        ssm["D"] = jnp.full_like(ssm["D"], 1 / len(params["ssm"]))  # the directions add up
    x = jax.random.normal(jax.random.key(6), (2, 5, 7, 8))
    plain, _ = block(None)

    def expected(params, x):
        module = plain({key: value for key, value in params.items() if key != "ssm"})
        with mock.patch.object(gated_cnn, "gated_cnn_block", with_silu):
            return module(x)

    with jax.default_matmul_precision("highest"):
        both = jax.jit(lambda params: (merge(params)(x), expected(params, x)))(params)
    np.testing.assert_allclose(*both, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_state_space_model_reads_silu_of_the_convolution():
    """The whole block, written out from its equation."""
    merge, params = block("bidirectional")
    x = jax.random.normal(jax.random.key(6), (1, 3, 4, 8))

    @jax.jit
    def both(params):
        module = merge(params)
        kept_gate, conv_gate, kept, value = jnp.split(module.fc1(module.norm(x)), [8, 16, 24], axis=-1)
        u = jax.nn.silu(module.conv(value)).reshape(1, 12, 8)
        forwards, backwards = module.ssm
        mixed = (forwards(u) + backwards(u[:, ::-1])[:, ::-1]).reshape(1, 3, 4, 8)
        gates = jax.nn.gelu(jnp.concatenate([kept_gate, conv_gate], -1), approximate=False)
        return module(x), x + module.fc2(gates * jnp.concatenate([kept, mixed], -1))

    np.testing.assert_allclose(*both(params), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_orders_are_different_functions_of_any_map():
    x, outputs = images((33, 47)), []
    cross = noisy(mamba(scan_order="cross", **ONE_BLOCK).init(jax.random.key(0)))
    for scan_order, directions in SCAN_ORDERS.items():
        variables = jax.tree.map(lambda leaf: leaf, cross)
        for stage in variables["params"]["stages"].values():
            for one in stage["blocks"].values():
                one["ssm"] = {index: one["ssm"][index] for index in range(len(directions))}
        outputs.append(logits_of(mamba(scan_order=scan_order, **ONE_BLOCK), variables, x))
    assert all(jnp.isfinite(logits).all() and logits.shape == (4, 5) for logits in outputs)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert jnp.abs(outputs[a] - outputs[b]).max() > 1e-3


def test_published_models_are_what_they_were():
    model = mo.create_model("mambaout_femto")
    assert (model.options["token_mixer"], model.options["scan_order"]) == ("conv", "causal")
    paths = jax.tree.leaves_with_path(jax.eval_shape(model.init, jax.random.key(0)))
    assert not any(getattr(entry, "key", None) == "ssm" for path, _ in paths for entry in path)
