"""Blocks compute the same unrolled and scanned, for every remat."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mambaout_jax as mo
from mambaout_jax.models import Functional, ModelError
from mambaout_jax.models.layers.blocks import run_blocks
from mambaout_jax.models.layers.drop import drop_path, dropout
from mambaout_jax.models.layers.linear import Linear
from mambaout_jax.models.macs import count_macs
from mambaout_jax.models.mambaout.gated_cnn import GatedCNNBlock
from mambaout_jax.models.options import REMAT

# Few blocks of small kernels, which compile soon.
SMALL = {"dims": (8,), "depths": (2,), "kernel_size": 3}
FAMILIES = {
    # The loop is not that of the model's first blocks.
    "conv": ("mambaout_femto", {**SMALL, "depths": (1, 2), "dims": (8, 8), "ls_init_value": 1e-5}),
    "conv_ssm": ("mamba_femto", SMALL),
    "vit": ("deit_tiny_patch16_224", {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}),
}
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(4, 32, 32, 3)), jnp.float32)


def make(family, **options):
    name, own = FAMILIES[family]
    return mo.create_model(name, img_size=32, num_classes=5, **{"drop_path_rate": 0.3, **own, **options})


def loss_of(model):
    def loss(params):
        variables = {"params": params, "batch_stats": {}}
        return jnp.square(model.apply_train(variables, IMAGES, key=jax.random.key(2))[0]).mean()

    return loss


def shapes(model):
    return jax.eval_shape(model.init, jax.random.key(0))


def forward(model, key=None):
    """Trace the forward pass."""
    return jax.make_jaxpr(lambda variables: model.apply_train(variables, IMAGES, key=key)[0])(shapes(model))


def stored_bytes(model):
    """Count what the backward pass is given."""
    residuals = jax.eval_shape(lambda params: jax.vjp(loss_of(model), params)[1], shapes(model)["params"])
    return sum(math.prod(leaf.shape) * 4 for leaf in jax.tree.leaves(residuals))


class Dropping(nnx.Module):
    """Blocks with dropout of their own, at any drop path rate."""

    def __init__(self, rates, scan):
        self.rates, self.scan = rates, scan
        self.blocks = nnx.List([self.Block() for _ in rates])

    def __call__(self, x, key=None):
        return run_blocks(self.blocks, x, key, self.rates, first=0, scan=self.scan, remat="none")

    class Block(nnx.Module):
        def __init__(self):
            self.linear = Linear(4, 4, dtype=jnp.dtype("float32"))

        def __call__(self, x, key, rate):
            first, second = (None, None) if key is None else jax.random.split(key)
            return x + drop_path(dropout(self.linear(x), 0.5, first), rate, second)


@pytest.mark.slow
@pytest.mark.parametrize("rates", [(0.0, 0.0, 0.0), (0.0, 0.1, 0.2), (0.1, 0.1, 0.1)])
def test_every_block_gets_a_key_of_its_own_whatever_its_rate(rates):
    x, results = jax.random.normal(jax.random.key(1), (8, 4)), []
    for scan in (False, True):
        blocks = Functional(Dropping(rates, scan))
        variables = blocks.init(jax.random.key(0))
        results.append(blocks.apply(variables, x, jax.random.key(2)))
        assert not np.allclose(results[-1], blocks.apply(variables, x))
    np.testing.assert_allclose(*results, rtol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_drawn_and_stored_is_the_same_for_each_block_by_itself(family):
    plain, scanned = make(family), make(family, scan_blocks=True, remat="save_matmuls")
    assert jax.tree.map(lambda leaf: leaf.shape, shapes(plain)) == jax.tree.map(
        lambda leaf: leaf.shape, shapes(scanned)
    )
    assert str(jax.make_jaxpr(plain.init)(jax.random.key(0))) == str(jax.make_jaxpr(scanned.init)(jax.random.key(0)))
    assert plain.no_decay == scanned.no_decay


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("remat", REMAT)
def test_a_stage_of_several_blocks_is_one_loop(family, remat):
    def lengths(model):
        equations = forward(model, jax.random.key(0)).eqns
        return [equation.params["length"] for equation in equations if equation.primitive.name == "scan"]

    depths = {"depth": 4} if family == "vit" else {"depths": (4, 1, 3), "dims": (8, 8, 8)}
    expected = [4] if family == "vit" else [4, 3]
    assert lengths(make(family, scan_blocks=True, remat=remat, **depths)) == expected
    assert lengths(make(family, remat=remat, **depths)) == []


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scan_blocks", [False, True])
def test_each_remat_stores_less_than_the_one_before(family, scan_blocks):
    none, save_matmuls, full = (stored_bytes(make(family, scan_blocks=scan_blocks, remat=remat)) for remat in REMAT)
    assert none > 1.2 * save_matmuls > 1.2 * 1.2 * full


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_loop_stores_what_blocks_one_by_one_store(family):
    for remat in REMAT:
        plain, scanned = (stored_bytes(make(family, scan_blocks=scan, remat=remat)) for scan in (False, True))
        assert abs(scanned - plain) < 0.01 * plain, remat


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_save_matmuls_computes_no_product_and_no_convolution_again(family):
    def macs(remat):
        return count_macs(jax.grad(loss_of(make(family, remat=remat))), shapes(make(family))["params"])

    once = macs("none")
    # Scores of attention and selective scans are recomputed.
    assert macs("save_matmuls") == once if family == "conv" else once < macs("save_matmuls") < 1.1 * once
    assert macs("full") > 1.05 * once


@pytest.mark.parametrize("family", FAMILIES)
def test_multiply_adds_are_counted_in_a_loop(family):
    variables = shapes(make(family))
    plain, scanned = (count_macs(make(family, scan_blocks=scan).apply, variables, IMAGES) for scan in (False, True))
    assert scanned == plain


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_loop_draws_nothing_without_a_key_or_a_rate(family):
    assert "random_bits" in str(forward(make(family, scan_blocks=True), jax.random.key(0)))
    assert "random_bits" not in str(forward(make(family, scan_blocks=True)))
    assert "random_bits" not in str(forward(make(family, scan_blocks=True, drop_path_rate=0.0), jax.random.key(0)))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loop_computes_in_bfloat16(family):
    model = make(family, scan_blocks=True, dtype="bfloat16")
    maps = jax.eval_shape(lambda variables: model.apply(variables, IMAGES, output="features"), shapes(model))
    assert {feature_map.dtype for feature_map in maps} == {jnp.dtype("bfloat16")}


def test_blocks_that_differ_are_not_scanned():
    options = {"expansion_ratio": 2.0, "conv_ratio": 1.0, "kernel_size": 3, "ls_init_value": None}
    blocks = [GatedCNNBlock(8, act_layer=name, dtype=jnp.dtype("float32"), **options) for name in ("gelu", "silu")]
    with pytest.raises(ValueError, match="the blocks to scan differ"):
        run_blocks(blocks, jnp.zeros((1, 4, 4, 8)), None, (0.0, 0.0), first=0, scan=True, remat="none")


@pytest.mark.parametrize(
    ("option", "value"), [("remat", "dots"), ("remat", False), ("scan_blocks", 1), ("scan_blocks", "yes")]
)
@pytest.mark.parametrize("family", ["conv", "vit"])
def test_unknown_values_are_answered_by_the_known(family, option, value, no_type_checks):
    known = "'none' or 'save_matmuls' or 'full'" if option == "remat" else "True or False"
    with pytest.raises(ModelError, match=f"{option} is {value!r}; expected {known}"):
        make(family, **{option: value})
