"""The layers of MambaVision equal direct formulas in NumPy, its blocks are where the options put them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mambaout_jax as mo
from mambaout_jax.models import Functional, ModelError
from mambaout_jax.models.jaxprs import inner_jaxprs
from mambaout_jax.models.key_format import default_transform
from mambaout_jax.models.layers.attention import Attention
from mambaout_jax.models.layers.windows import merge_windows, split_windows
from mambaout_jax.models.mambavision.mixer import TOKEN_MIXERS, MambaVisionMixer
from mambaout_jax.models.mambavision.model import ConvBlock, attention_indices
from mambaout_jax.models.mambavision.weights import ORIGINAL
from mambaout_jax.weights.key_map import from_torch_key
from tests.models import golden

FLOAT32 = jnp.dtype("float32")
NARROW = {"dim": 8, "in_dim": 4, "num_heads": (1, 1, 2, 4), "num_classes": 5}


def small_model(**options):
    return mo.create_model("mambavision_t", **{**NARROW, "depths": (1, 1, 2, 2), **options})


def noisy(variables, scale=0.2):
    rng = np.random.default_rng(3)
    return jax.tree.map(lambda leaf: leaf + scale * rng.normal(size=leaf.shape).astype(leaf.dtype), variables)


def module_of(model):
    return nnx.merge(model._graphdef, model._params, model._batch_stats)


def kinds(**options):
    """Return the blocks of the last two stages, A for attention and M for the mixer."""
    stages = module_of(small_model(**options)).stages[2:]
    return ["".join("A" if isinstance(block.mixer, Attention) else "M" for block in stage.blocks) for stage in stages]


def test_states_and_kernels_have_the_sizes_of_the_options():
    mixer = small_model(d_state=4, d_conv=5).shapes["params"]["stages"][2]["blocks"][0]["mixer"]
    assert mixer["ssm"]["A_log"].shape == (16, 4)
    assert mixer["ssm"]["x_proj"]["weight"].shape == (16, 2 + 2 * 4)
    assert mixer["conv1d_x"]["weight"].shape == mixer["conv1d_z"]["weight"].shape == (5, 1, 16)


def equations(jaxpr):
    """Return all equations of a program that are not inside a loop."""
    for eqn in jaxpr.eqns:
        yield eqn
        if eqn.primitive.name != "scan":
            for inner in inner_jaxprs(eqn.params):
                yield from equations(inner)


def silu(x):
    return x / (1 + np.exp(-x))


def convolve(x, weight, before):
    """Compute a depthwise convolution of one sequence, with `before` zeros before it and zeros after it."""
    padded = np.pad(x, ((before, len(weight) - 1 - before), (0, 0)))
    return np.stack([(padded[t : t + len(weight)] * weight[:, 0]).sum(0) for t in range(len(x))])


def mix(params, x, token_mixer):
    """Compute the mixer of one sequence step by step, in float64."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    ssm, half = p["ssm"], x.shape[1] // 2
    x = x @ p["in_proj"]["weight"]
    x, z = x[:, :half], x[:, half:]
    x = silu(convolve(x, p["conv1d_x"]["weight"], 2 if token_mixer == "causal_conv" else 1))
    if token_mixer in ("gated", "concat"):
        z = convolve(z, p["conv1d_z"]["weight"], 1)
    z = silu(z)
    projected, bias = x @ ssm["x_proj"]["weight"], ssm["dt_proj"]["bias"]
    dt, B, C = np.split(projected, [len(ssm["dt_proj"]["weight"]), projected.shape[1] - 8], axis=1)
    delta = np.log1p(np.exp(dt @ ssm["dt_proj"]["weight"] + 2 * bias))
    state, outputs = np.zeros((half, 8)), []
    for t in range(len(x)):
        decay = np.exp(-delta[t][:, None] * np.exp(ssm["A_log"]))
        state = decay * state + (delta[t] * x[t])[:, None] * B[t]
        outputs.append(state @ C[t] + ssm["D"] * x[t])
    y = np.stack(outputs)
    return (np.concatenate([y, z], 1) if token_mixer == "concat" else y * z) @ p["out_proj"]["weight"]


def test_only_a_causal_convolution_has_steps():
    steps = {
        kind: hasattr(MambaVisionMixer(16, token_mixer=kind, dtype=FLOAT32).conv1d_x, "step") for kind in TOKEN_MIXERS
    }
    assert steps == {"causal_conv": True, "conv": False, "gated": False, "concat": False}


@pytest.mark.slow
@pytest.mark.parametrize("token_mixer", TOKEN_MIXERS)
def test_a_mixer_computes_its_formula(token_mixer):
    mixer = Functional(MambaVisionMixer(16, token_mixer=token_mixer, dtype=FLOAT32))
    variables = noisy(mixer.init(jax.random.key(0)))
    x = np.random.default_rng(0).normal(size=(2, 7, 16)).astype(np.float32)
    with jax.default_matmul_precision("highest"):
        output = mixer.apply(variables, x)
    expected = [mix(variables["params"], sequence, token_mixer) for sequence in x]
    np.testing.assert_allclose(output, expected, rtol=0, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", golden.names("mambavision_mixer__*"))
def test_the_mixer_matches_its_reference(name):
    case = golden.load(name)
    mixer = Functional(MambaVisionMixer(case.options["d_model"], dtype=FLOAT32))
    params = {}
    for key, tensor in case.state_dict.items():
        path = from_torch_key(ORIGINAL, f"levels.2.blocks.0.mixer.{key}").split(".")[5:]
        params[tuple(path)] = jnp.asarray(default_transform(path[-1], tensor.ndim).from_torch(tensor))
    variables = {"params": nnx.traversals.unflatten_mapping(params), "batch_stats": {}}
    with jax.default_matmul_precision("highest"):
        output = mixer.apply(variables, case.input)
    np.testing.assert_allclose(output, case.output, rtol=0, atol=case.atol)


def test_initial_values_of_a_mixer_are_those_of_the_reference():
    params = Functional(MambaVisionMixer(64, dtype=FLOAT32)).init(jax.random.key(0))["params"]
    ssm = params["ssm"]
    np.testing.assert_allclose(ssm["A_log"], np.broadcast_to(np.log(np.arange(1, 9)), (32, 8)), rtol=1e-6)
    assert (ssm["D"] == 1).all()
    assert (ssm["dt_proj"]["bias"] == 0).all()
    for name in ("x_proj", "dt_proj"):
        assert float(ssm[name]["weight"].std()) == pytest.approx(0.02, rel=0.3)


def test_scales_of_branches_start_at_the_value_of_the_option():
    block = Functional(ConvBlock(4, layer_scale=0.25, dtype=FLOAT32))
    assert (block.init(jax.random.key(0))["params"]["ls"]["gamma"] == 0.25).all()
    model = small_model(layer_scale=0.25, layer_scale_conv=0.5)
    scales = [path for path, _ in jax.tree.leaves_with_path(model.shapes) if path[-1].key == "gamma"]
    assert len(scales) == 2 + 2 * 4  # one in a block of convolutions, two in the others


@pytest.mark.parametrize("size", [(4, 4), (5, 3), (2, 9)])
def test_windows_are_padded_with_zeros_and_merge_to_the_same_map(size):
    x = jax.random.normal(jax.random.key(0), (2, *size, 3))
    windows = split_windows(x, 4)
    rows, columns = (-(-side // 4) for side in size)
    assert windows.shape == (2 * rows * columns, 16, 3)
    np.testing.assert_array_equal(windows[0].reshape(4, 4, 3)[: size[0], : size[1]], x[0, :4, :4])
    assert float(jnp.abs(windows).sum()) == pytest.approx(float(jnp.abs(x).sum()), rel=1e-5)
    np.testing.assert_array_equal(merge_windows(windows, 4, *size), x)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["MMAA", "MMMAA"]),
        ({"attention_pattern": "first"}, ["AAMM", "AAMMM"]),
        ({"attention_pattern": "alternating"}, ["MAMA", "MAMAM"]),
        ({"attention_blocks": 1}, ["MMMA", "MMMMA"]),
        ({"attention_blocks": 0}, ["MMMM", "MMMMM"]),
        ({"attention_blocks": 1000}, ["AAAA", "AAAAA"]),
        ({"attention_blocks": 3, "attention_pattern": "first"}, ["AAAM", "AAAMM"]),
    ],
)
def test_attention_is_in_the_blocks_that_the_options_name(options, expected):
    assert kinds(depths=(1, 1, 4, 5), **options) == expected


def test_the_published_pattern_has_more_mixers_if_the_depth_is_odd():
    assert attention_indices(7, "last", None) == {4, 5, 6}


def test_neighboring_blocks_of_one_kind_are_compiled_once():
    model = small_model(depths=(2, 1, 4, 1), scan_blocks=True)
    program = jax.make_jaxpr(model.apply)(model.shapes, jax.ShapeDtypeStruct((1, 32, 40, 3), jnp.float32))
    # Two convolution blocks, two mixers, two blocks with attention.
    assert [eqn.params["length"] for eqn in equations(program.jaxpr) if eqn.primitive.name == "scan"].count(2) == 3


def test_a_convolution_block_uses_the_approximate_activation():
    block = Functional(ConvBlock(4, layer_scale=None, dtype=FLOAT32))
    variables = jax.tree.map(np.asarray, noisy(block.init(jax.random.key(0))))
    # With identities for the convolutions, the block is x + norm2(gelu(norm1(x))).
    identity = np.zeros((3, 3, 4, 4), np.float32)
    identity[1, 1] = np.eye(4)
    convolution = {"weight": identity, "bias": np.zeros(4, np.float32)}
    params = variables["params"] | {"conv1": convolution, "conv2": convolution}
    x = np.random.default_rng(0).normal(size=(1, 5, 6, 4)).astype(np.float32)
    stats = variables["batch_stats"]

    def norm(x, name):
        scale = params[name]["weight"] / np.sqrt(stats[name]["running_var"] + 1e-5)
        return (x - stats[name]["running_mean"]) * scale + params[name]["bias"]

    y = norm(x, "norm1")
    y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
    with jax.default_matmul_precision("highest"):
        output = block.apply({**variables, "params": params}, x)
    np.testing.assert_allclose(output, x + norm(y, "norm2"), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"depths": (1, 1, 2)}, "depths"),
        ({"num_heads": (1, 1, 2, 3)}, r"num_heads\[3\] is 3"),
        ({"attention_pattern": "alternating", "attention_blocks": 2}, "attention_blocks"),
        ({"mlp_ratio": 0.001}, "mlp_ratio is 0.001; expected a finite number of at least 1/32"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(options, named):
    with pytest.raises(ModelError, match=named):
        small_model(**options)


def test_images_of_512_pixels_are_squashed():
    assert mo.create_model("mambavision_l2_512_21k").input_spec.crop_mode == "squash"
    assert mo.create_model("mambavision_l2").input_spec.crop_mode == "center"
