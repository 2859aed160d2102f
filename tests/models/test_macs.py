"""Multiply-adds are counted without running the program."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import mambaout_jax as mo
from mambaout_jax import plugins
from mambaout_jax.models.macs import count_macs, count_model_macs, variant_costs
from mambaout_jax.models.registry import BUILT_IN
from mambaout_jax.ops import SCAN_IMPLS, selective_scan, selective_scan_step
from tests.marks import slow_but
from tests.toy import model as toy

# In millions, convolutions and matrix products alone at 224 px: timm 1.0.31's modules, counted by hooks.
PUBLISHED = {
    "mambaout_femto": 1148,
    "mambaout_kobe": 1506,
    "mambaout_tiny": 4470,
    "mambaout_small": 8936,
    "mambaout_base": 15794,
    "mambaout_small_rw": 8936,
    "mambaout_base_short_rw": 16281,
    "mambaout_base_tall_rw": 16117,
    "mambaout_base_wide_rw": 17752,
    "mambaout_base_plus_rw": 19161,
}
# The same, and those of attention: the specification of DeiT's models.
PUBLISHED_VIT = {"tiny": 1254, "small": 4599, "base": 17564}

# GFLOPs, where a multiply-add is one, and the largest relative difference. The authors of VMamba count as we do, and
# those of PlainMamba nearly; the numbers of LocalVMamba and MambaVision leave out other operations.
FLOPS = [
    ("vmamba_tiny_s1l8", 4.9, 0.02),
    ("vmamba_small_s1l20", 8.6, 0.01),
    ("vmamba_base_s1l20", 15.2, 0.01),
    ("vmamba_tiny_s2l5", 4.9, 0.02),
    ("vmamba_small_s2l15", 8.7, 0.01),
    ("vmamba_base_s2l15", 15.4, 0.01),
    ("vmamba_tiny_v0", 5.6, 0.01),
    ("vmamba_small_v0", 11.2, 0.01),
    ("vmamba_base_v0", 18.0, 0.01),
    ("localvmamba_tiny", 5.7, 0.02),
    ("localvmamba_small", 11.4, 0.02),
    ("plainmamba_l1", 3.0, 0.01),
    ("plainmamba_l2", 8.1, 0.01),
    ("plainmamba_l3", 14.4, 0.01),
    ("mambavision_t", 4.4, 0.05),
    ("mambavision_t2", 5.1, 0.05),
    ("mambavision_s", 7.5, 0.05),
    ("mambavision_b", 15.0, 0.05),
    ("mambavision_l", 34.9, 0.05),
    ("mambavision_l2", 37.5, 0.05),
    ("mambavision_l2_512_21k", 196.3, 0.055),
    ("mambavision_l3_256_21k", 122.3, 0.05),
    ("mambavision_l3_512_21k", 489.1, 0.05),
]


def spec(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def product(x, w):
    return x @ w


X, W = spec(3, 5), spec(5, 7)
ONE = 3 * 5 * 7


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    slow_but(
        ["mambaout_base_wide_rw", "test_mambaout", *(next(iter(family.variants)) for family in BUILT_IN)],
        mo.list_models(),
        "nightly",
    ),
)
def test_variant_has_the_multiply_adds_that_it_states(name):
    model = mo.create_model(name)
    counted = count_model_macs(model)
    assert variant_costs(name) == (model.num_params, counted)
    assert name not in PUBLISHED or round(counted / 1e6) == PUBLISHED[name]


def test_variants_of_other_packages_that_state_nothing_are_counted(monkeypatch):
    monkeypatch.setattr(plugins, "provided", lambda attribute: (toy.FAMILY,))
    model = mo.create_model("spotter_small")
    assert variant_costs("spotter_small") == (model.num_params, count_model_macs(model))


@pytest.mark.slow
@pytest.mark.parametrize("size", slow_but(["tiny"], PUBLISHED_VIT))
@pytest.mark.parametrize("attention", ["full", "causal"])
def test_products_of_attention_are_counted(size, attention):
    options = {} if attention == "full" else {"attention": "causal", "global_pool": "avg"}
    for program in ("vit", "deit"):
        assert (
            round(count_model_macs(mo.create_model(f"{program}_{size}_patch16_224", **options)) / 1e6)
            == PUBLISHED_VIT[size]
        )


def test_every_mambaout_with_published_accuracy_is_counted_here():
    assert {name for name in mo.list_models() if "mambaout" in name} == {*PUBLISHED, "test_mambaout"}


def test_parameters_are_those_of_the_model():
    model = mo.create_model("test_mambaout")
    variables = jax.eval_shape(model.init, jax.random.key(0))
    assert model.num_params == sum(leaf.size for leaf in jax.tree.leaves(variables)) == 447_560


def test_matrix_products_count_batch_rows_columns_and_depth():
    assert count_macs(product, X, W) == ONE
    assert count_macs(lambda x, w: jnp.einsum("bij,bjk->bik", x, w), spec(2, 3, 5), spec(2, 5, 7)) == 2 * ONE


@pytest.mark.parametrize(("groups", "expected"), [(1, 2 * 4 * 3 * 6 * 9 * 4), (2, 2 * 4 * 3 * 6 * 9 * 2)])
def test_convolutions_count_outputs_window_and_channels_of_a_group(groups, expected):
    def conv(x, w):
        return lax.conv_general_dilated(
            x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
        )

    assert count_macs(conv, spec(2, 7, 5, 4), spec(3, 3, 4 // groups, 6)) == expected


def test_pointwise_work_counts_nothing():
    assert count_macs(lambda x: jax.nn.softmax(jnp.sin(x) * x + 1), X) == 0


def with_jvp(function):
    wrapped = jax.custom_jvp(function)
    wrapped.defjvp(lambda primals, tangents: (function(*primals), function(*tangents)))
    return wrapped


def with_vjp(function):
    wrapped = jax.custom_vjp(function)
    wrapped.defvjp(lambda *args: (function(*args), args), lambda args, _: args)
    return wrapped


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, with_jvp, with_vjp])
def test_wrapped_function_counts_once(wrap):
    assert count_macs(wrap(product), X, W) == ONE


@pytest.mark.parametrize("impl", SCAN_IMPLS)
def test_a_selective_scan_counts_by_its_states_for_every_implementation(impl):
    def scan(u, A, B):
        return selective_scan(u, u, A, B, B, A[:, 0], u, impl=impl)

    arguments = spec(2, 40, 6), spec(6, 4), spec(2, 40, 4)
    once = 2 * 40 * 6 * (9 * 4 + 1)
    assert count_macs(scan, *arguments) == once
    assert count_macs(jax.jit(jax.checkpoint(scan)), *arguments) == once
    assert count_macs(lambda *arguments: lax.map(lambda _: scan(*arguments), jnp.arange(3)), *arguments) == 3 * once


@pytest.mark.parametrize("impl", SCAN_IMPLS)
def test_a_step_of_a_selective_scan_counts_as_one_position(impl):
    step = count_macs(selective_scan_step, spec(2, 6, 4), spec(2, 6), spec(2, 6), spec(6, 4), spec(2, 4), spec(2, 4))
    assert step == 2 * 6 * (9 * 4 + 1)


@pytest.mark.parametrize(("name", "published", "tolerance"), FLOPS)
def test_models_have_the_published_flops(name, published, tolerance):
    assert variant_costs(name)[1] / 1e9 == pytest.approx(published, rel=tolerance)


@pytest.mark.parametrize(("name", "published"), [("vim_tiny", 1.5), ("vim_small", 5.1), ("localvim_tiny", 1.5)])
def test_the_published_flops_of_vim_are_more_than_its_products_and_less_than_with_its_scans(name, published):
    params = mo.create_model(name).shapes["params"]
    decays = [leaf for path, leaf in jax.tree.leaves_with_path(params["layers"]) if path[-1].key == "A_log"]
    scans = params["pos_embed"].shape[1] * sum(
        channels * (9 * n + 1) for channels, n in (leaf.shape for leaf in decays)
    )
    counted = variant_costs(name)[1]
    assert (counted - scans) / 1e9 < published < counted / 1e9


def test_scan_counts_its_length():
    def repeat(x, w):
        return lax.scan(lambda carry, _: (carry @ w, None), x, length=11)[0]

    assert count_macs(repeat, spec(3, 5), spec(5, 5)) == 11 * 3 * 5 * 5


def test_choice_counts_its_costliest_branch():
    def choose(x, w):
        return lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: (x @ w) @ jnp.ones((7, 7)))

    assert count_macs(choose, X, W) == ONE + 3 * 7 * 7


def test_platforms_count_as_the_costliest():
    def by_platform(x, w):
        return lax.platform_dependent(x, w, cpu=lambda x, w: x[:, :1] * w[:1], default=product)

    assert count_macs(by_platform, X, W) == ONE


def test_gradient_counts_two_more_products():
    def step(x, w):
        return jax.grad(lambda x, w: (x @ w).sum(), argnums=(0, 1))(x, w)

    assert count_macs(step, X, W) in (2 * ONE, 3 * ONE)  # the product itself may be dead code


def test_products_in_a_loop_of_unknown_length_are_refused():
    def loop(x, w):
        return lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ w, x)

    with pytest.raises(ValueError, match="'while' cannot be counted"):
        count_macs(loop, spec(3, 5), spec(5, 5))
    assert count_macs(lambda x: lax.while_loop(lambda x: x.sum() < 1, lambda x: x + 1, x), X) == 0
