"""MambaOut equals its references and has the properties of its family."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mambaout_jax as mo
from mambaout_jax.models import ModelError, cpu_compiler_options
from mambaout_jax.models.layers.drop import drop_path
from mambaout_jax.models.mambaout.model import GatedCNNBlock
from mambaout_jax.weights.options import other_options
from tests.models import golden

SMALL = {"depths": (1, 2), "dims": (8, 16), "num_classes": 5}


def small_model(**options):
    return mo.create_model("mambaout_femto", img_size=32, **{**SMALL, **options})


def images(size=(32, 32), batch=4, channels=3):
    return jax.random.normal(jax.random.key(7), (batch, *size, channels))


def logits_of(model, variables, x, **options):
    return jax.jit(lambda v, x: model.apply(v, x, **options))(variables, x)


def noisy(variables, scale=0.2):
    """Move every parameter, so that a residual branch is as large as its trunk."""
    rng = np.random.default_rng(3)  # JAX compiles a program for each shape
    return jax.tree.map(lambda leaf: leaf + scale * rng.normal(size=leaf.shape).astype(leaf.dtype), variables)


def block_params(case):
    """Read a block's weights as those of the one block of a model."""
    model = small_model(depths=(1,), dims=(case.options["dim"],), conv_ratio=case.options.get("conv_ratio", 1.0))
    state_dict = mo.to_torch(model, model.init(jax.random.key(0)))
    state_dict |= {f"stages.0.blocks.0.{key}": value for key, value in case.state_dict.items()}
    return mo.from_torch(model, state_dict)["params"]["stages"][0]["blocks"][0]


@pytest.mark.slow
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


@pytest.mark.parametrize("shape", [(2, 31, 32, 3), (2, 32, 16, 3), (2, 32, 32, 1), (32, 32, 3)], ids=str)
def test_images_that_do_not_fit_are_refused(shape, no_type_checks):
    model = small_model()
    variables = model.init(jax.random.key(0))
    with pytest.raises(ModelError, match="expected"):
        model.apply(variables, jnp.zeros(shape))


def test_drop_path_keeps_the_mean():
    x = jnp.ones((20_000, 1, 1, 1))
    dropped = drop_path(x, 0.3, jax.random.key(0))
    assert set(np.unique(np.asarray(dropped)).tolist()) == {0.0, np.float32(1 / 0.7).item()}
    assert abs(float(dropped.mean()) - 1.0) < 0.02


@pytest.mark.slow
@pytest.mark.optimized
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other compilers schedule otherwise")
def test_a_program_for_cpus_does_not_hold_the_weights_twice():
    model = mo.create_model("mambaout_base", depths=(1, 1, 1, 6))
    variables = jax.eval_shape(model.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    program = jax.jit(model.apply, compiler_options=cpu_compiler_options()).lower(variables, images).compile()
    memory = program.memory_analysis()
    assert memory.temp_size_in_bytes < memory.argument_size_in_bytes / 4


@pytest.mark.parametrize("value", [0.0, 1e-6, 0.5])
def test_layer_scale_starts_at_the_given_value(value):
    params = small_model(ls_init_value=value).init(jax.random.key(0))["params"]
    np.testing.assert_array_equal(params["stages"][0]["blocks"][0]["ls"]["gamma"], np.full(8, value, np.float32))


@pytest.mark.slow
def test_the_variants_of_timm_start_at_its_default():
    names = [name for name in mo.list_models() if name.endswith("_rw")]
    assert {mo.create_model(name).options["ls_init_value"] for name in names} == {1e-5}


def test_only_the_presence_of_a_layer_scale_matters_to_weights():
    model = small_model(ls_init_value=0.5)
    assert other_options(model.family, model.options, small_model(ls_init_value=1e-5).options) == []
    assert other_options(model.family, model.options, small_model().options) == ["ls_init_value"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_classes": -1}, "num_classes"),
        ({"depths": (1, 1, 1)}, "depths"),
        ({"dims": (8, 16, 0, 32)}, "dims"),
        ({"dims": "wide"}, "dims"),
        ({"dims": (1, 8, 8, 8)}, "dims is .*; expected at least 2 channels in the first stage"),
        ({"depths": (1.5, 1, 1, 1)}, "depths"),
        ({"drop_rate": "half"}, "drop_rate"),
        ({"kernel_size": 4}, "kernel_size"),
        ({"conv_ratio": 3.0}, "conv_ratio"),
        ({"drop_path_rate": 2.0}, "drop_path_rate"),
        ({"drop_rate": -0.1}, "drop_rate"),
        ({"act_layer": "tanh"}, "act_layer"),
        ({"downsample": "pool"}, "downsample"),
        ({"head_fn": "mlp"}, "head_fn"),
        ({"token_mixer": "ssm"}, "token_mixer is 'ssm'; expected 'conv' or 'conv_ssm'"),
        ({"scan_order": "cross"}, "scan_order is 'cross' but token_mixer 'conv' has no scan"),
        ({"scan_order": "zigzag"}, "scan_order is 'zigzag'; expected 'causal' or 'bidirectional' or 'cross'"),
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
