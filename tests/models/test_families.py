"""Every model of every family has the properties that the rest of the program relies on.

What differs between families is data: tests/golden/families.
"""

import fnmatch
import functools
import math
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

import mambaout_jax as mo
from mambaout_jax.models import ModelError
from mambaout_jax.models.registry import BUILT_IN
from mambaout_jax.train.optimizer import decay_mask
from mambaout_jax.weights.key_map import tensor_specs
from tests.marks import slow_but
from tests.models import golden
from tests.weights import pytorch

SMALL = golden.small_models()
FAMILIES = {family.name: family for family in BUILT_IN}
VARIANTS = [(family.name, variant) for family in BUILT_IN for variant in family.variants]
SIZE = (32, 40)

every_small_model = pytest.mark.parametrize("name", SMALL)
# Expensive properties: of three models in the tier of the test, of the families that share no blocks with another in
# `slow`, of the other models at night.
QUICK = ["mambaout-conv", "vim-v2", "vit-class_token"]
OTHERS = [name for name in golden.first_small_models() if name not in QUICK and not name.startswith("local")]
REST = [name for name in SMALL if name not in (*QUICK, *OTHERS)]
small_models_by_tier = pytest.mark.parametrize("name", [*QUICK, *slow_but([], OTHERS), *slow_but([], REST, "nightly")])


@functools.cache
def small(name, **options):
    base, own = SMALL[name]
    return mo.create_model(base, **{"img_size": SIZE, "num_classes": 5, **own, **options})


def data_of(name):
    return golden.FAMILIES[small(name).family.name]


@functools.cache
def variables_of(name):
    """Move every parameter, so that a residual branch is as large as its trunk."""
    rng = np.random.default_rng(3)  # JAX compiles a program for each shape
    initial = small(name).init(jax.random.key(0))
    return jax.tree.map(lambda leaf: leaf + 0.2 * rng.normal(size=leaf.shape).astype(np.float32), initial)


def images(size=SIZE, batch=4):
    return jnp.asarray(np.random.default_rng(0).normal(size=(batch, *size, 3)), jnp.float32)


def shapes(model):
    return jax.eval_shape(model.init, jax.random.key(0))


def leaves_by_path(tree):
    return {tuple(entry.key for entry in path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def count(variables):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))


def without_classifier(model, variables):
    params = leaves_by_path(variables["params"])
    kept = {path: leaf for path, leaf in params.items() if path[:-1] != model.classifier}
    return {**variables, "params": nnx.traversals.unflatten_mapping(kept)}


def module_of(model):
    return nnx.merge(model._graphdef, model._params, model._batch_stats)


def assert_close(ours, theirs, tolerance):
    for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * float(jnp.abs(b).max()))


@pytest.mark.parametrize(("family", "variant"), VARIANTS)
def test_a_variant_has_the_published_number_of_parameters(family, variant):
    published = golden.FAMILIES[family]["parameters"][variant]
    assert FAMILIES[family].variants[variant].params == mo.create_model(variant).num_params == published


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_maps_have_the_channels_and_strides_that_the_model_states(family):
    variant = next(iter(FAMILIES[family].variants))
    assert mo.create_model(variant).num_params == count(shapes(mo.create_model(variant)))
    model = mo.create_model(variant, **golden.shallow_options(family))
    assert model.num_params == count(shapes(model))
    batch = jax.ShapeDtypeStruct((2, *model.input_spec.size, 3), jnp.float32)
    logits, maps = jax.eval_shape(
        lambda v, x: [model.apply(v, x, output=output) for output in ("logits", "features")], shapes(model), batch
    )
    assert logits.shape == (2, 1000)
    for info, feature_map in zip(model.feature_info, maps, strict=True):
        height, width = (side // info.stride for side in model.input_spec.size)
        assert feature_map.shape == (2, height, width, info.channels)


@every_small_model
def test_first_layer_and_classifier_are_all_that_depends_on_channels_and_classes(name):
    model = small(name)
    changes = ({}, {"in_chans": 1}, {"num_classes": 7})
    own, channels, classes = (leaves_by_path(shapes(small(name, **options))["params"]) for options in changes)

    def changed(other):
        return {path for path in own if own[path].shape != other[path].shape}

    assert changed(channels) == {(*model.first_conv, "weight")}
    assert changed(classes) == {(*model.classifier, "weight"), (*model.classifier, "bias")}


@pytest.mark.slow
@small_models_by_tier
def test_logits_are_the_last_layer_of_the_embedding_which_is_all_that_a_model_without_classes_has(name):
    model, headless, variables, x = small(name), small(name, num_classes=0), variables_of(name), images()
    kept = without_classifier(model, variables)
    assert jax.tree.map(np.shape, kept) == jax.tree.map(np.shape, shapes(headless))
    logits, embedding, alone = jax.jit(
        lambda v, kept, x: (model.apply(v, x), model.embed(v, x), headless.apply(kept, x))
    )(variables, kept, x)
    layer = functools.reduce(lambda tree, key: tree[key], model.classifier, variables["params"])
    assert_close(embedding @ layer["weight"] + layer["bias"][None], logits, 1e-6)
    assert_close(alone, embedding, 1e-6)


@pytest.mark.slow
@small_models_by_tier
def test_a_model_without_classes_takes_and_gives_weights_without_the_last_layer(name, tmp_path):
    model, headless = small(name), small(name, num_classes=0)
    kept = without_classifier(model, variables_of(name))
    pytorch.assert_equal_trees(mo.from_torch(headless, mo.to_torch(headless, kept)), kept)
    save_file(mo.to_torch(model, variables_of(name)), tmp_path / "w.safetensors")
    base, own = SMALL[name]
    license = pytest.warns(UserWarning, match="license") if data_of(name).get("restricted") else nullcontext()
    with license:
        loaded, found = mo.load_pretrained(tmp_path / "w.safetensors", name=base, num_classes=0, img_size=SIZE, **own)
    assert loaded.num_classes == 0
    pytorch.assert_equal_trees(found, kept)


@pytest.mark.slow
@small_models_by_tier
def test_initial_values_are_those_of_the_reference(name):
    for path, leaf in leaves_by_path(small(name).init(jax.random.key(0))["params"]).items():
        key = ".".join(map(str, path))
        given = data_of(name)["initial_std"].items()
        stds = [std for pattern, std in given if fnmatch.fnmatchcase(key, pattern)]
        if stds == [None]:  # a test of the layer checks it
            continue
        if leaf.ndim > 1 or stds:
            (std,) = stds or [0.02]
            assert abs(float(leaf.std()) - std) < std * 5 / math.sqrt(leaf.size), key
            assert abs(float(leaf.mean())) < std * 5 / math.sqrt(leaf.size), key
        else:
            norm = path[-1] == "weight" and "norm" in str(path[-2])
            assert (leaf == (1.0 if norm else 0.0)).all(), key


def names_with(key):
    return pytest.mark.parametrize("name", [name for name in SMALL if key in golden.FAMILIES[name.partition("-")[0]]])


@names_with("no_decay")
def test_weight_decay_spares_the_listed_parameters(name):
    model = small(name)
    paths = leaves_by_path(shapes(model)["params"])
    assert model.no_decay == {path for path in paths if path[-1] in data_of(name)["no_decay"]}


@names_with("no_weight_decay")
def test_weight_decay_spares_vectors_and_no_weight_decay_of_the_reference(name):
    # By the names and shapes of the reference: timm 0.4.12, with which Vim is trained, and lib/utils/optim.py of
    # LocalMamba exempt biases, tensors with one axis and what the method `no_weight_decay` of a model returns.
    model, listed = small(name), data_of(name)["no_weight_decay"]
    decayed = {
        spec.paths[0][1:]
        for spec in tensor_specs(model.shapes, model.family.key_formats[0])
        if len(spec.shape) > 1 and not spec.keys[0].endswith(".bias") and spec.keys[0] not in listed
    }
    mask = leaves_by_path(decay_mask(shapes(model)["params"], model.no_decay))
    assert {path for path, decays in mask.items() if decays} == decayed


@pytest.mark.slow
@small_models_by_tier
def test_a_model_is_random_only_with_a_key(name):
    model, variables, x = small(name, drop_path_rate=0.9, drop_rate=0.9), variables_of(name), images()
    logits = jax.jit(model.apply)(variables, x)

    @jax.jit
    def train(variables, x, key=None):
        return model.apply_train(variables, x, key=key)[0]

    if not variables["batch_stats"]:
        np.testing.assert_array_equal(train(variables, x), logits)
    with_key = train(variables, x, jax.random.key(1))
    assert not np.array_equal(with_key, logits)
    np.testing.assert_array_equal(train(variables, x, jax.random.key(1)), with_key)


@pytest.mark.slow
@small_models_by_tier
def test_drop_path_draws_for_each_branch_and_sample_and_rises_over_the_blocks(name):
    model = small(name, drop_path_rate=0.6)
    rates = module_of(model).drop_path_rates
    np.testing.assert_allclose(rates, np.linspace(0.0, 0.6, len(rates)))
    one = images(batch=1)
    same = jnp.broadcast_to(one, (1024, *one.shape[1:]))
    logits = jax.jit(lambda v, x, key: model.apply_train(v, x, key=key)[0])(variables_of(name), same, jax.random.key(5))
    outcomes = {row.tobytes() for row in np.asarray(logits, np.float32).round(4)}
    branches = np.broadcast_to(data_of(name)["residual_branches"], len(rates))  # of all blocks, or of each
    assert len(outcomes) == 2 ** branches[1:].sum()


@pytest.mark.slow
@small_models_by_tier
def test_bfloat16_computes_low_and_keeps_parameters_and_logits_high(name):
    model, variables = small(name, dtype="bfloat16"), jax.tree.map(lambda leaf: leaf / 2, variables_of(name))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes(model))} == {jnp.dtype("float32")}
    logits, maps = jax.jit(lambda v, x: [model.apply(v, x, output=output) for output in ("logits", "features")])(
        variables, images()
    )
    assert logits.dtype == jnp.float32
    assert {feature_map.dtype for feature_map in maps} == {jnp.dtype("bfloat16")}
    exact = jax.jit(small(name).apply)(variables, images())
    assert 0 < float(jnp.abs(logits - exact).max()) < 0.05 * float(jnp.abs(exact).max())


@small_models_by_tier
def test_sizes_that_no_stride_divides_are_taken_or_refused_by_name(name, no_type_checks):
    model, x = small(name), images((33, 47), batch=1)
    if "img_size" in model.options:
        with pytest.raises(ModelError, match="images are 33x47; expected 32x40"):
            model.apply(variables_of(name), x)
    else:
        logits = jax.jit(model.apply)(variables_of(name), x)
        assert logits.shape == (1, 5)
        assert jnp.isfinite(logits).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"scan_blocks": True, "remat": "full"}, pytest.param({"remat": "save_matmuls"}, marks=pytest.mark.nightly)],
    ids=["scan_full", "save_matmuls"],
)
@small_models_by_tier
def test_scan_and_remat_change_no_value_and_no_gradient(name, options):
    variables, x = variables_of(name), images()

    def results(**options):
        model = small(name, drop_path_rate=0.3, **options)

        @jax.jit
        @jax.value_and_grad
        def loss(params):
            trained = {**variables, "params": params}
            return jnp.square(model.apply_train(trained, x, key=jax.random.key(2))[0]).mean()

        value, gradients = loss(variables["params"])
        # Gradients of biases that the mean of a batch cancels are rounding errors.
        cancelled = data_of(name).get("cancelled", [])
        kept = {
            path: leaf
            for path, leaf in leaves_by_path(gradients).items()
            if not any(fnmatch.fnmatchcase(".".join(map(str, path)), pattern) for pattern in cancelled)
        }
        return value, list(kept.values())

    expected = results()
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(expected)), "every parameter is used"
    assert_close(results(**options), expected, 3e-6)


@every_small_model
def test_weights_go_to_pytorch_and_come_back_in_every_key_format(name):
    model = small(name)
    variables, converted = pytorch.draw(model), 0
    for key_format in model.family.key_formats:
        try:
            state_dict = mo.to_torch(model, variables, key_format.name)
        except mo.weights.WeightsError:  # it has no names for these parameters
            continue
        pytorch.assert_equal_trees(mo.from_torch(model, state_dict), variables)
        converted += 1
    assert converted


@small_models_by_tier
def test_an_exported_program_computes_the_same(name):
    pytest.importorskip("flatbuffers", reason="jax.export serializes by flatbuffers")
    model, x = small(name), images()
    leaves, structure = jax.tree.flatten(variables_of(name))  # it takes no dicts with integers as keys
    apply = jax.jit(lambda leaves, x: model.apply(jax.tree.unflatten(structure, leaves), x))
    program = jax.export.deserialize(jax.export.export(apply)(leaves, x).serialize())
    assert_close(program.call(leaves, x), apply(leaves, x), 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.nightly)])
@small_models_by_tier
def test_programs_are_lowered_for_tpus_without_one_and_contain_the_kernels_of_scans(name, dtype):
    model, x = small(name, dtype=dtype), jax.ShapeDtypeStruct((4, *SIZE, 3), jnp.float32)

    def loss(params, batch_stats, x):
        return jnp.square(model.apply_train({"params": params, "batch_stats": batch_stats}, x)[0]).mean()

    params, batch_stats = model.shapes["params"], model.shapes["batch_stats"]
    forward = jax.export.export(jax.jit(model.apply), platforms=["tpu"])(model.shapes, x)
    step = jax.export.export(jax.jit(jax.value_and_grad(loss)), platforms=["tpu"])(params, batch_stats, x)
    scans = any(map(any, golden.scans_of(name)))
    for program, kernel in ((forward, "selective_scan_forward"), (step, "selective_scan_backward")):
        assert (kernel in program.mlir_module()) == scans
