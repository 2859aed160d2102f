"""The Vision Transformer equals its reference and has the properties of its family."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mambaout_jax as mo
from mambaout_jax.models import ModelError, find_family
from tests.marks import slow_but
from tests.models import golden
from tests.weights import pytorch

# Parameter counts to the last digit: timm 1.0.31.
PARAMETERS = {"tiny": 5_717_416, "small": 22_050_664, "base": 86_567_656}
CASES = golden.names("vit__*")

SMALL = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}


def small_model(**options):
    return mo.create_model("deit_tiny_patch16_224", **{"img_size": (32, 40), **SMALL, **options})


def causal_model(**options):
    return small_model(attention="causal", class_token=False, global_pool="avg", **options)


def images(size=(32, 40), batch=4, channels=3):
    return jax.random.normal(jax.random.key(7), (batch, *size, channels))


def logits_of(model, variables, x, **options):
    return jax.jit(lambda v, x: model.apply(v, x, **options))(variables, x)


def trained_logits(model, variables, x, key=None):
    return jax.jit(lambda v, x: model.apply_train(v, x, key=key)[0])(variables, x)


def module_of(model):
    return nnx.merge(model._graphdef, model._params, model._batch_stats)


def drawn(model, scale=0.2):
    """Draw every parameter so large that a residual branch is as large as its trunk."""
    return jax.tree.map(lambda leaf: jnp.asarray(scale * leaf), pytorch.draw(model))


def golden_model(name):
    case = golden.load(name)
    attention = "causal" if "__causal" in name else "full"
    return case, mo.create_model("vit_tiny_patch16_224", **case.options, attention=attention)


def test_there_are_cases_of_either_attention_and_pooling():
    assert len(CASES) == 5
    assert sum("__causal" in name for name in CASES) == 2


@pytest.mark.parametrize("name", CASES)
def test_forward_matches_reference(name):
    case, model = golden_model(name)
    variables = mo.from_torch(model, case.state_dict)

    @jax.jit
    def run(variables, x):
        logits, maps = (model.apply(variables, x, output=output) for output in ("logits", "features"))
        return logits, maps, model.apply_train(variables, x)[0]

    with jax.default_matmul_precision("highest"):
        logits, (feature_map,), train_logits = run(variables, case.input)
    np.testing.assert_allclose(logits, case.output, rtol=0, atol=case.atol)
    np.testing.assert_array_equal(train_logits, logits)
    expected = case.features["block2"][:, -(feature_map.shape[1] * feature_map.shape[2]) :]
    np.testing.assert_allclose(feature_map.reshape(expected.shape), expected, rtol=0, atol=case.atol)


@pytest.mark.parametrize("name", CASES)
def test_the_reference_comes_back_bit_for_bit(name):
    case, model = golden_model(name)
    pytorch.assert_equal_state_dicts(mo.to_torch(model, mo.from_torch(model, case.state_dict)), case.state_dict)


@pytest.mark.parametrize("size", PARAMETERS)
@pytest.mark.parametrize("program", slow_but(["vit"], ["vit", "deit"]))
def test_parameter_count_and_shapes(program, size):
    model = mo.create_model(f"{program}_{size}_patch16_224")
    variables = jax.eval_shape(model.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == PARAMETERS[size]
    spec = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    assert jax.eval_shape(model.apply, variables, spec).shape == (2, 1000)
    (feature_map,) = jax.eval_shape(lambda v, x: model.apply(v, x, output="features"), variables, spec)
    (info,) = model.feature_info
    assert feature_map.shape == (2, 14, 14, info.channels)
    assert info.stride == 16


def test_all_variants_are_counted_here():
    assert find_family("vit_tiny_patch16_224").variants.keys() == {
        f"{program}_{size}_patch16_224" for program in ("vit", "deit") for size in PARAMETERS
    }


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


def test_a_class_token_that_comes_first_sees_itself_alone():
    def change(model):
        variables = drawn(model)
        first = jax.jit(lambda v, x: model._merge(v)._tokens(x, None)[:, 0])(variables, images())
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
        with pytest.raises(ModelError, match=f"images are {size[0]}x{size[1]}; 32x40 is expected, the img_size"):
            model.apply(variables, images(size))
    assert model.input_spec.size == model.options["img_size"] == (32, 40)
    assert mo.create_model("vit_tiny_patch16_224").options["img_size"] == (224, 224)
    assert "img_size" not in mo.create_model("test_mambaout", img_size=64).options


def test_weight_decay_leaves_embeddings_alone():
    assert small_model().no_decay == {("pos_embed",), ("cls_token",)}
    assert small_model(class_token=False, global_pool="avg").no_decay == {("pos_embed",)}


def test_first_and_last_layer_are_where_the_seam_says():
    def shapes(**options):
        params = jax.eval_shape(small_model(**options).init, jax.random.key(0))["params"]
        return {tuple(k.key for k in path): leaf.shape for path, leaf in jax.tree.leaves_with_path(params)}

    model, own = small_model(), shapes()
    channels, classes = shapes(in_chans=1), shapes(num_classes=7)
    assert {path for path in own if own[path] != channels[path]} == {(*model.first_conv, "weight")}
    last = {(*model.classifier, "weight"), (*model.classifier, "bias")}
    assert {path for path in own if own[path] != classes[path]} == last


def test_without_key_nothing_is_random():
    model = small_model(drop_path_rate=0.9, drop_rate=0.9)
    variables = drawn(model)
    logits = logits_of(model, variables, images())
    np.testing.assert_array_equal(trained_logits(model, variables, images()), logits)
    with_key = trained_logits(model, variables, images(), jax.random.key(1))
    assert not np.array_equal(with_key, logits)
    np.testing.assert_array_equal(trained_logits(model, variables, images(), jax.random.key(1)), with_key)


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


def test_bfloat16_computes_low_and_keeps_parameters_softmax_and_logits_high():
    model, exact = small_model(dtype="bfloat16"), small_model()
    variables = drawn(model, 0.1)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits = logits_of(model, variables, images())
    (feature_map,) = logits_of(model, variables, images(), output="features")
    assert (logits.dtype, feature_map.dtype) == (jnp.float32, jnp.bfloat16)
    reference = logits_of(exact, variables, images())
    assert 0 < float(jnp.abs(logits - reference).max()) < 0.03 * float(jnp.abs(reference).max())
    jaxpr = str(jax.make_jaxpr(model.apply)(variables, images()))
    scores = [line for line in jaxpr.splitlines() if " exp " in line]
    assert scores
    assert all(":f32[" in line for line in scores)


def test_initial_values_follow_the_recipe():
    params = mo.create_model("deit_tiny_patch16_224", depth=1).init(jax.random.key(0))["params"]
    for path, leaf in jax.tree.leaves_with_path(params):
        name, layer = path[-1].key, path[-2].key if len(path) > 1 else ""
        if layer == "proj" and path[0].key == "patch_embed":  # as PyTorch starts a convolution
            bound = 1 / np.sqrt(16 * 16 * 3)
            assert 0.9 * bound < float(jnp.abs(leaf).max()) <= bound
            assert abs(float(leaf.std()) / (bound / np.sqrt(3)) - 1) < 0.1
        elif leaf.ndim > 1:
            std = 1e-6 if name == "cls_token" else 0.02
            assert abs(float(leaf.std()) - std) < std * 5 / np.sqrt(leaf.size), path
        else:
            assert (leaf == (1.0 if name == "weight" and layer.startswith("norm") else 0.0)).all(), path


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_classes": 0}, "num_classes"),
        ({"depth": 1.5}, "depth"),
        ({"embed_dim": "wide"}, "embed_dim"),
        ({"num_heads": 5}, "embed_dim is 24; a multiple of num_heads 5 is expected"),
        ({"patch_size": 7}, "multiples of patch_size 7"),
        ({"mlp_ratio": 0.0}, "mlp_ratio"),
        ({"class_token": False}, "set global_pool='avg'"),
        ({"global_pool": "max"}, "expected one of token, avg"),
        ({"attention": "sparse"}, "expected one of full, causal"),
        ({"fc_norm": "yes"}, "fc_norm"),
        ({"drop_path_rate": 1.0}, "drop_path_rate"),
        ({"drop_rate": "half"}, "drop_rate"),
        ({"drop_rate": False}, "drop_rate is False; a probability"),
        ({"class_token": 1}, "class_token is 1; expected one of True, False"),
        ({"dtype": "float16"}, "dtype"),
        ({"img_size": 16}, "img_size"),
        ({"depths": (1, 1)}, "did you mean 'depth'"),
    ],
)
def test_option_out_of_range_is_named(options, words, no_type_checks):
    with pytest.raises(ModelError, match=words) as caught:
        small_model(**options)
    assert "\n" not in str(caught.value)
