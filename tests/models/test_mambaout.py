"""MambaOut equals its references and has the properties of its family."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mambaout_jax as mo
from mambaout_jax.models import ModelError, cpu_compiler_options, find_family
from mambaout_jax.models.layers.drop import drop_path
from mambaout_jax.models.mambaout.model import GatedCNNBlock
from tests.marks import slow_but
from tests.models import golden

# Parameter counts to the last digit: timm 1.0.31.
PARAMETERS = {
    "mambaout_femto": 7_304_536,
    "mambaout_kobe": 9_141_208,
    "mambaout_tiny": 26_545_096,
    "mambaout_small": 48_488_072,
    "mambaout_base": 84_813_092,
    "mambaout_small_rw": 48_495_560,
    "mambaout_base_short_rw": 88_827_688,
    "mambaout_base_tall_rw": 86_481_448,
    "mambaout_base_wide_rw": 94_448_104,
    "mambaout_base_plus_rw": 101_656_552,
    "test_mambaout": 447_560,
}

CASES = [*golden.names("mambaout_orig__*"), *golden.names("timm_mambaout__*")]
QUICK = ["mambaout_orig__odd_96x80", "timm_mambaout__test_mambaout", "timm_mambaout__base_wide_rw_opts"]
SMALL = {"depths": (1, 2), "dims": (8, 16), "num_classes": 5}


def small_model(**options):
    return mo.create_model("mambaout_femto", img_size=32, **{**SMALL, **options})


def images(size=(32, 32), batch=4, channels=3):
    return jax.random.normal(jax.random.key(7), (batch, *size, channels))


def logits_of(model, variables, x, **options):
    return jax.jit(lambda v, x: model.apply(v, x, **options))(variables, x)


def trained_logits(model, variables, x, key=None):
    return jax.jit(lambda v, x: model.apply_train(v, x, key=key)[0])(variables, x)


def noisy(variables, scale=0.2):
    """Move every parameter, so that a residual branch is as large as its trunk."""
    rng = np.random.default_rng(3)  # JAX compiles a program for each shape
    return jax.tree.map(lambda leaf: leaf + scale * rng.normal(size=leaf.shape).astype(leaf.dtype), variables)


@pytest.mark.parametrize("name", ["mambaout_femto", "test_mambaout"])
def test_the_classifier_is_all_that_depends_on_the_classes(name):
    def shapes(num_classes):
        model = mo.create_model(name, img_size=32, depths=(1, 1), dims=(8, 16), num_classes=num_classes)
        params = jax.eval_shape(model.init, jax.random.key(0))["params"]
        return model.classifier, {
            tuple(key.key for key in path): leaf.shape for path, leaf in jax.tree.leaves_with_path(params)
        }

    (path, few), (_, many) = shapes(3), shapes(5)
    assert {name for name in few if few[name] != many[name]} == {(*path, "weight"), (*path, "bias")}


def test_every_variant_of_the_family_is_counted():
    family = find_family("mambaout_femto").variants
    # Those with a state space model are counted beside its laws.
    assert {name for name in family if not name.startswith("mamba_")} == PARAMETERS.keys()


@pytest.mark.parametrize("name", slow_but(["mambaout_femto", "test_mambaout"], sorted(PARAMETERS)))
def test_parameter_count_and_shapes(name):
    model = mo.create_model(name)
    variables = jax.eval_shape(model.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == PARAMETERS[name]
    spec = jax.ShapeDtypeStruct((2, *model.input_spec.size, 3), jnp.float32)
    assert jax.eval_shape(model.apply, variables, spec).shape == (2, 1000)
    maps = jax.eval_shape(lambda v, x: model.apply(v, x, output="features"), variables, spec)
    for info, feature_map in zip(model.feature_info, maps, strict=True):
        side = model.input_spec.size[0] // info.stride
        assert feature_map.shape == (2, side, side, info.channels)


@pytest.mark.parametrize("name", slow_but(QUICK, CASES))
def test_forward_matches_reference(name):
    case = golden.load(name)
    base = "test_mambaout" if name.endswith("test_mambaout") else "mambaout_femto"
    model = mo.create_model(base, img_size=case.input.shape[1:3], **case.options)
    variables = mo.from_torch(model, case.state_dict)

    @jax.jit
    def run(variables, x):
        logits, maps = (model.apply(variables, x, output=output) for output in ("logits", "features"))
        return logits, maps, model.apply_train(variables, x, output="features")[0]

    with jax.default_matmul_precision("highest"):
        logits, maps, train_maps = run(variables, case.input)
    np.testing.assert_allclose(logits, case.output, rtol=0, atol=case.atol)
    for index, (feature_map, train_map) in enumerate(zip(maps, train_maps, strict=True)):
        np.testing.assert_allclose(feature_map, case.features[f"stage{index}"], rtol=0, atol=case.atol)
        np.testing.assert_allclose(train_map, case.features[f"stage{index}"], rtol=0, atol=case.atol)


def block_params(case):
    """Read a block's weights as those of the one block of a model."""
    model = small_model(depths=(1,), dims=(case.options["dim"],), conv_ratio=case.options.get("conv_ratio", 1.0))
    state_dict = mo.to_torch(model, model.init(jax.random.key(0)))
    state_dict |= {f"stages.0.blocks.0.{key}": value for key, value in case.state_dict.items()}
    return mo.from_torch(model, state_dict)["params"]["stages"][0]["blocks"][0]


@pytest.mark.parametrize("name", golden.names("gated_cnn_block__*"))
def test_block_matches_reference(name):
    case = golden.load(name)
    block = GatedCNNBlock(
        case.options["dim"],
        expansion_ratio=8 / 3,
        conv_ratio=case.options.get("conv_ratio", 1.0),
        kernel_size=7,
        act_layer="gelu",
        ls_init_value=None,
        dtype=jnp.dtype("float32"),
    )
    graphdef, _ = nnx.split(block)
    with jax.default_matmul_precision("highest"):
        output = jax.jit(lambda params, x: nnx.merge(graphdef, params)(x))(block_params(case), case.input)
    np.testing.assert_allclose(output, case.output, rtol=0, atol=case.atol)


def test_parameters_have_timms_names():
    case = golden.load("timm_mambaout__test_mambaout")
    model = mo.create_model("test_mambaout", **case.options)
    params = jax.eval_shape(model.init, jax.random.key(0))["params"]
    ours = {".".join(str(entry.key) for entry in path) for path, _ in jax.tree.leaves_with_path(params)}
    assert ours == case.state_dict.keys()


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 32)])
def test_any_size_of_32_and_up(size):
    model = small_model()
    logits = logits_of(model, model.init(jax.random.key(0)), images(size))
    assert logits.shape == (4, 5)
    assert jnp.isfinite(logits).all()


@pytest.mark.parametrize("shape", [(2, 31, 32, 3), (2, 32, 16, 3), (2, 32, 32, 1), (32, 32, 3)], ids=str)
def test_images_that_do_not_fit_are_refused(shape, no_type_checks):
    model = small_model()
    variables = model.init(jax.random.key(0))
    with pytest.raises(ModelError, match="expected"):
        model.apply(variables, jnp.zeros(shape))


def test_without_key_nothing_is_random():
    model = small_model(drop_path_rate=0.9, drop_rate=0.9)
    variables = model.init(jax.random.key(0))
    logits = logits_of(model, variables, images())
    np.testing.assert_array_equal(trained_logits(model, variables, images()), logits)
    with_key = trained_logits(model, variables, images(), jax.random.key(1))
    assert not np.array_equal(with_key, logits)
    np.testing.assert_array_equal(trained_logits(model, variables, images(), jax.random.key(1)), with_key)


def block_masks(model, variables, x, key):
    """Recover which samples each block dropped: those that leave a block as they came."""
    module, index, masks = model._merge(variables), 0, []
    x = module.stem(x)
    for stage in module.stages:
        x = x if stage.downsample is None else stage.downsample(x)
        for block in stage.blocks:
            y = block(x, jax.random.fold_in(key, index), module.drop_path_rates[index])
            masks.append(jnp.abs(y - x).max((1, 2, 3)) > 0)
            x, index = y, index + 1
    return jnp.stack(masks)


def test_drop_path_masks_differ_between_blocks_and_samples():
    model = small_model(depths=(4, 4), drop_path_rate=0.5)
    variables = noisy(model.init(jax.random.key(0)))
    masks = np.asarray(
        jax.jit(lambda v, x, key: block_masks(model, v, x, key))(variables, images(batch=64), jax.random.key(5))
    )
    assert masks[0].all(), "the first block is never dropped"
    assert len({mask.tobytes() for mask in masks[1:]}) == len(masks) - 1
    assert 0.45 < masks[-3:].mean() < 0.7  # keep rates of 0.64, 0.57 and 0.5


def test_drop_path_keeps_the_mean():
    x = jnp.ones((20_000, 1, 1, 1))
    dropped = drop_path(x, 0.3, jax.random.key(0))
    assert set(np.unique(np.asarray(dropped)).tolist()) == {0.0, np.float32(1 / 0.7).item()}
    assert abs(float(dropped.mean()) - 1.0) < 0.02


def test_drop_path_rises_linearly_over_all_blocks():
    model = mo.create_model("mambaout_tiny", drop_path_rate=0.2)
    module = nnx.merge(model._graphdef, model._params, model._batch_stats)
    np.testing.assert_allclose(module.drop_path_rates, np.linspace(0.0, 0.2, 18))


@pytest.mark.optimized
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other compilers schedule otherwise")
def test_a_program_for_cpus_does_not_hold_the_weights_twice():
    model = mo.create_model("mambaout_base", depths=(1, 1, 1, 6))
    variables = jax.eval_shape(model.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    program = jax.jit(model.apply, compiler_options=cpu_compiler_options()).lower(variables, images).compile()
    memory = program.memory_analysis()
    assert memory.temp_size_in_bytes < memory.argument_size_in_bytes / 4


def test_bfloat16_computes_low_and_keeps_parameters_and_logits_high():
    model, exact = small_model(dtype="bfloat16"), small_model()
    variables = noisy(model.init(jax.random.key(0)), 0.05)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits, maps = (logits_of(model, variables, images(), output=output) for output in ("logits", "features"))
    assert logits.dtype == jnp.float32
    assert {feature_map.dtype for feature_map in maps} == {jnp.dtype("bfloat16")}
    reference = logits_of(exact, variables, images())
    assert 0 < float(jnp.abs(logits - reference).max()) < 0.03 * float(jnp.abs(reference).max())


def test_initial_values_follow_the_recipe():
    params = mo.create_model("mambaout_femto").init(jax.random.key(0))["params"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name, layer = path[-1].key, path[-2].key
        if leaf.ndim > 1:
            assert abs(float(leaf.std()) - 0.02) < 0.02 * 5 / np.sqrt(leaf.size), path
        else:
            assert (leaf == (1.0 if name == "weight" and layer.startswith("norm") else 0.0)).all(), path


def test_layer_scale_starts_where_timm_starts_it():
    params = small_model(ls_init_value=1e-6).init(jax.random.key(0))["params"]
    np.testing.assert_array_equal(params["stages"][0]["blocks"][0]["ls"]["gamma"], np.full(8, 1e-5, np.float32))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_classes": 0}, "num_classes"),
        ({"depths": (1, 1, 1)}, "depths"),
        ({"dims": (8, 16, 0, 32)}, "dims"),
        ({"dims": "wide"}, "dims"),
        ({"depths": (1.5, 1, 1, 1)}, "depths"),
        ({"drop_rate": "half"}, "drop_rate"),
        ({"kernel_size": 4}, "kernel_size"),
        ({"conv_ratio": 3.0}, "conv_ratio"),
        ({"drop_path_rate": 2.0}, "drop_path_rate"),
        ({"drop_rate": -0.1}, "drop_rate"),
        ({"act_layer": "tanh"}, "act_layer"),
        ({"downsample": "pool"}, "downsample"),
        ({"head_fn": "mlp"}, "head_fn"),
        ({"token_mixer": "ssm"}, "token_mixer is 'ssm'; expected one of conv, conv_ssm"),
        ({"scan_order": "cross"}, "scan_order is 'cross' and token_mixer 'conv', without scan"),
        ({"scan_order": "zigzag"}, "scan_order is 'zigzag'; expected one of causal, bidirectional, cross"),
        ({"dtype": "float16"}, "dtype"),
        ({"img_size": 16}, "img_size"),
        ({"drop_path": 0.1}, "did you mean 'drop_path_rate'"),
    ],
)
def test_option_out_of_range_is_named(options, words, no_type_checks):
    with pytest.raises(ModelError, match=words):
        mo.create_model("mambaout_femto", **options)


def test_unknown_model_suggests_the_nearest():
    with pytest.raises(ModelError, match="did you mean 'mambaout_tiny'"):
        mo.create_model("mambaout_tinny")


def test_unknown_output_is_named(no_type_checks):
    model = small_model()
    with pytest.raises(ModelError, match="output"):
        model.apply(model.init(jax.random.key(0)), images(), output="maps")
