"""The Vision Transformer equals its reference and has the properties of its family."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mambaout_jax as mo
from mambaout_jax.models import ModelError
from tests.weights import pytorch

SMALL = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}


def small_model(**options):
    return mo.create_model("deit_tiny_patch16_224", **{"img_size": (32, 40), **SMALL, **options})


def causal_model(**options):
    return small_model(attention="causal", class_token=False, global_pool="avg", **options)


def images(size=(32, 40), batch=4, channels=3):
    return jax.random.normal(jax.random.key(7), (batch, *size, channels))


def logits_of(model, variables, x, **options):
    return jax.jit(lambda v, x: model.apply(v, x, **options))(variables, x)


def module_of(model):
    return nnx.merge(model._graphdef, model._params, model._batch_stats)


def drawn(model, scale=0.2):
    """Draw every parameter so large that a residual branch is as large as its trunk."""
    return jax.tree.map(lambda leaf: jnp.asarray(scale * leaf), pytorch.draw(model))


@pytest.mark.slow
def test_a_causal_map_never_depends_on_later_patches():
    def reach(model):
        """Tell for each patch of the map which patches of the image it depends on."""
        variables = drawn(model)

        @jax.jit
        def jacobian(x):
            return jax.jacrev(lambda x: model.apply(variables, x, output="features")[0][0].sum(-1).ravel())(x)

        change = np.abs(np.asarray(jacobian(images(batch=1))))[:, 0]
        return change.reshape(20, 4, 8, 5, 8, 3).max((2, 4, 5)).reshape(20, 20) > 0

    before = np.tril(np.ones((20, 20), bool))
    np.testing.assert_array_equal(reach(causal_model()), before)
    np.testing.assert_array_equal(reach(small_model(attention="causal", global_pool="avg")), before)
    assert reach(small_model()).all()


@pytest.mark.slow
def test_a_class_token_that_comes_first_sees_itself_alone():
    def change(model):
        variables = drawn(model)

        @jax.jit
        def first_token(variables, images):
            module = model._merge(variables)
            return module._run_blocks(module._tokens(images), None, 0, len(module.blocks))[:, 0]

        first = first_token(variables, images())
        return float(jnp.abs(first - first[:1]).max())

    assert change(small_model(attention="causal", global_pool="avg")) == 0
    assert change(small_model(global_pool="avg")) > 1e-3
    with pytest.raises(ModelError, match="so that the logits would ignore the image: set global_pool='avg'"):
        small_model(attention="causal")


@pytest.mark.parametrize(
    ("options", "norms"),
    [
        ({}, {"norm"}),
        ({"global_pool": "avg"}, {"fc_norm"}),
        ({"global_pool": "avg", "fc_norm": False}, {"norm"}),
        ({"global_pool": "avg", "class_token": False, "fc_norm": False}, {"norm"}),
        ({"fc_norm": True}, {"fc_norm"}),
    ],
)
def test_one_norm_is_there_before_or_after_pooling(options, norms):
    params = jax.eval_shape(small_model(**options).init, jax.random.key(0))["params"]
    assert {name for name in params if "norm" in name} == norms
    assert ("cls_token" in params) == options.get("class_token", True)
    assert params["pos_embed"].shape == (1, 20 + ("cls_token" in params), 24)


def test_the_model_takes_images_of_its_own_size_alone(no_type_checks):
    model = small_model()
    variables = drawn(model)
    for size in ((40, 32), (32, 32), (64, 80)):
        with pytest.raises(ModelError, match=f"images are {size[0]}x{size[1]}; expected 32x40, the img_size"):
            model.apply(variables, images(size))
    assert model.input_spec.size == model.options["img_size"] == (32, 40)
    assert mo.create_model("vit_tiny_patch16_224").options["img_size"] == (224, 224)
    assert "img_size" not in mo.create_model("test_mambaout", img_size=64).options


@pytest.mark.slow
def test_each_branch_of_each_block_is_dropped_by_itself():
    model = small_model(depth=4, drop_path_rate=0.5)
    rates = module_of(model).drop_path_rates
    np.testing.assert_allclose(rates, np.linspace(0.0, 0.5, 4))

    def masks(variables, x, key):
        """Recover which samples lost which branch: those that the branch's layers do not move."""
        blocks, found = model._merge(variables).blocks, []
        for index, block in enumerate(blocks):
            for silent in ("attn", "mlp"):
                last = getattr(block, silent).proj if silent == "attn" else getattr(block, silent).fc2
                weight, bias = last.weight[...], last.bias[...]
                last.weight[...], last.bias[...] = 0 * weight, 0 * bias
                y = block(x, jax.random.fold_in(key, index), rates[index])
                found.append(jnp.abs(y - x).max((1, 2)) > 0)
                last.weight[...], last.bias[...] = weight, bias
        return jnp.stack(found)

    variables = drawn(model)
    x = jax.random.normal(jax.random.key(2), (64, 20, 24))
    kept = np.asarray(jax.jit(masks)(variables, x, jax.random.key(5)))
    assert kept[:2].all(), "the first block is never dropped"
    assert len({mask.tobytes() for mask in kept[2:]}) == 6
    assert 0.35 < kept[-2:].mean() < 0.65


def test_the_softmax_of_a_bfloat16_model_is_float32():
    model = small_model(dtype="bfloat16")
    jaxpr = str(jax.make_jaxpr(model.apply)(drawn(model), images()))
    scores = [line for line in jaxpr.splitlines() if " exp " in line]
    assert scores
    assert all(":f32[" in line for line in scores)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_classes": -1}, "num_classes"),
        ({"depth": 1.5}, "depth"),
        ({"embed_dim": "wide"}, "embed_dim"),
        ({"num_heads": 5}, "embed_dim is 24; expected a multiple of num_heads 5"),
        ({"patch_size": 7}, "multiples of patch_size 7"),
        ({"mlp_ratio": 0.0}, "mlp_ratio"),
        ({"class_token": False}, "set global_pool='avg'"),
        ({"global_pool": "max"}, "expected 'token' or 'avg'"),
        ({"attention": "sparse"}, "expected 'full' or 'causal'"),
        ({"fc_norm": "yes"}, "fc_norm"),
        ({"drop_path_rate": 1.0}, "drop_path_rate"),
        ({"drop_rate": "half"}, "drop_rate"),
        ({"drop_rate": False}, "drop_rate is False; expected a number"),
        ({"class_token": 1}, "class_token is 1; expected True or False"),
        ({"dtype": "float16"}, "dtype"),
        ({"img_size": 16}, "img_size"),
        ({"depths": (1, 1)}, "did you mean 'depth'"),
    ],
)
def test_option_out_of_range_is_named(options, words, no_type_checks):
    with pytest.raises(ModelError, match=words) as caught:
        small_model(**options)
    assert "\n" not in str(caught.value)
