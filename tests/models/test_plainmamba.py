"""PlainMamba's paths, mixer and patches are those of its reference."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import mambaout_jax as mo
from mambaout_jax.models import Functional, ModelError
from mambaout_jax.models.key_format import KeyFormat, same_names
from mambaout_jax.models.plainmamba.mixer import SnakeMixer, path_moves, sum_paths, to_paths
from mambaout_jax.weights.state_dict import load_state_dict
from tests.models import golden
from tests.weights import pytorch

SMALL = {"patch_size": 8, "embed_dim": 24, "depth": 3, "d_state": 4, "num_classes": 5}
MIXERS = golden.names("plainmamba_mixer__*")
GRIDS = [(1, 1), (1, 4), (5, 1), (2, 2), (3, 4), (4, 3), (5, 5)]

every_grid = pytest.mark.parametrize("grid", GRIDS, ids=str)


def small_model(name="plainmamba_l1", **options):
    return mo.create_model(name, **{"img_size": 32, **SMALL, **options})


def images(size=(32, 32), batch=2):
    return jax.random.normal(jax.random.key(7), (batch, *size, 3))


def drawn(model, scale=0.3):
    return jax.tree.map(lambda leaf: jnp.asarray(scale * leaf), pytorch.draw(model))


def orders(height, width):
    """Return the pixels in the order of each path, as the program visits them."""
    numbered = jnp.arange(float(height * width)).reshape(1, height, width, 1)
    return np.asarray(to_paths(numbered))[0].astype(int).T


def mixer_of(case):
    given = case.options
    mixer = Functional(
        SnakeMixer(
            given["d_model"],
            d_state=given["d_state"],
            expand=float(given["expand"]),
            kernel_size=given["conv_size"],
            bias=given["bias"],
            impl="auto",
            dtype=jnp.dtype("float32"),
        )
    )
    layers = ("in_proj.*", "conv2d.*", "x_proj.*", "dt_proj.*", "out_proj.*", "*")
    shapes = {key: value.shape for key, value in case.state_dict.items()}
    tensors = (case.state_dict, shapes)
    return mixer, load_state_dict("mixer", mixer.shapes, KeyFormat("plainmamba", same_names(*layers)), *tensors)


@pytest.mark.slow
@pytest.mark.parametrize("name", MIXERS)
def test_the_mixer_and_its_paths_are_the_references(name):
    case, (height, width) = golden.load(name), golden.about(name)["kwargs"]["hw_shape"]
    tables = load_file(golden.GOLDEN / f"{name}.safetensors")
    np.testing.assert_array_equal(orders(height, width), tables["aux/scan_orders"])
    np.testing.assert_array_equal(path_moves(height, width).T, tables["aux/directions"])
    mixer, variables = mixer_of(case)
    with jax.default_matmul_precision("highest"):
        y = mixer.apply(variables, jnp.asarray(case.input).reshape(len(case.input), height, width, -1))
    np.testing.assert_allclose(y.reshape(case.output.shape), case.output, rtol=0, atol=case.atol)


@every_grid
def test_every_path_visits_every_pixel_once_by_steps_to_a_neighbor(grid):
    for path, moves in zip(orders(*grid), path_moves(*grid).T, strict=True):
        assert sorted(path) == list(range(grid[0] * grid[1]))
        assert moves[0] == 0
        steps = {1: (0, 1), 2: (0, -1), 3: (-1, 0), 4: (1, 0)}
        places = [divmod(pixel, grid[1]) for pixel in path]
        for (before, after), move in zip(itertools.pairwise(places), moves[1:], strict=True):
            assert (after[0] - before[0], after[1] - before[1]) == steps[move]


@every_grid
def test_a_map_comes_back_from_its_paths_once_from_each(grid):
    x = np.random.default_rng(0).integers(0, 9, (2, *grid, 3)).astype(np.float32)
    np.testing.assert_array_equal(sum_paths(to_paths(jnp.asarray(x)), *grid), 4 * x)


def test_only_the_input_follows_the_path_and_the_bias_of_the_step_counts_twice():
    case = golden.load("plainmamba_mixer__grid4x3")
    mixer, variables = mixer_of(case)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    # Without neighbors, the convolution is a product per channel.
    params["conv2d"]["weight"][...] = 0
    params["conv2d"]["weight"][1, 1] = 1
    x = case.input[0].astype(np.float64)
    v, z = np.split(x @ params["in_proj"]["weight"], 2, axis=1)
    u = v + params["conv2d"]["bias"]
    u = u / (1 + np.exp(-u))
    dt, B, C = np.split(u @ params["x_proj"]["weight"], [1, 7], axis=1)
    delta = np.log1p(np.exp(dt @ params["dt_proj"]["weight"] + 2 * params["dt_proj"]["bias"]))
    total = np.zeros_like(u)
    for path, moves in zip(orders(4, 3), path_moves(4, 3).T, strict=True):
        state = np.zeros(params["A_log"].shape)
        for t, (pixel, move) in enumerate(zip(path, moves, strict=True)):
            B_t = B[t] + params["direction_Bs"][move]
            state = np.exp(-delta[t][:, None] * np.exp(params["A_log"])) * state + (delta[t] * u[pixel])[:, None] * B_t
            total[pixel] += state @ C[t] + params["D"] * u[pixel]
    expected = (total * z / (1 + np.exp(-z))) @ params["out_proj"]["weight"]
    ours = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), {"params": params, "batch_stats": {}})
    with jax.default_matmul_precision("highest"):
        y = mixer.apply(ours, jnp.asarray(case.input).reshape(1, 4, 3, -1))
    np.testing.assert_allclose(y.reshape(12, -1), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
def test_paths_are_one_scan_without_a_state_for_every_position():
    model = small_model(img_size=128, d_state=7)
    batch = jax.ShapeDtypeStruct((2, 128, 128, 3), jnp.float32)
    text = str(jax.make_jaxpr(model.apply)(model.shapes, batch))
    assert "f32[2,256,192]" in text, "the channels of all paths are one scan"
    assert "[2,256,192,7]" not in text


def test_paths_are_transposes_and_flips_without_gathers():
    x = jnp.zeros((2, 4, 3, 5))
    text = str(jax.make_jaxpr(jax.grad(lambda x: jnp.sum(sum_paths(to_paths(x), 4, 3) ** 2)))(x))
    assert " rev[" in text
    assert " gather" not in text
    assert " scatter" not in text


@pytest.mark.slow
def test_incomplete_patches_are_filled_with_zeros_after_the_stem():
    model = small_model(img_size=(33, 42))
    assert model.shapes["params"]["pos_embed"].shape == (1, 5 * 6, 24)
    variables = drawn(model)
    (feature_map,) = model.apply(variables, images((33, 42)), output="features")
    assert feature_map.shape == (2, 5, 6, 24)
    whole = small_model(img_size=(40, 48))
    (other,) = whole.apply(variables, jnp.pad(images((33, 42)), ((0, 0), (0, 7), (0, 6), (0, 0))), output="features")
    assert np.abs(np.asarray(feature_map - other)).max() > 1e-4, "the norm of the stem shifts black pixels"


@pytest.mark.slow
def test_maps_are_those_of_the_chosen_blocks():
    model, last = small_model(out_indices=(0, 2)), small_model()
    variables = drawn(model)
    maps = model.apply(variables, images(), output="features")
    assert len(maps) == len(model.feature_info) == 2
    np.testing.assert_allclose(maps[1], last.apply(variables, images(), output="features")[0], rtol=1e-5, atol=1e-6)
    expected = small_model(out_indices=(0,)).apply(variables, images(), output="features")[0]
    np.testing.assert_allclose(maps[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_initial_convolutions_are_pytorchs():
    params = mo.create_model("plainmamba_l1", depth=1).init(jax.random.key(0))["params"]
    proj, conv2d = params["patch_embed"]["proj"], params["blocks"][0]["mixer"]["conv2d"]
    for leaf, bound in zip(jax.tree.leaves([proj, conv2d]), (1 / 64, 1 / 64, 1 / 7, 1 / 7), strict=True):
        assert 0.97 * bound < float(jnp.abs(leaf).max()) <= bound
    mixer = params["blocks"][0]["mixer"]
    np.testing.assert_allclose(mixer["A_log"], np.broadcast_to(np.log(np.arange(1, 17)), (384, 16)), rtol=1e-6)
    np.testing.assert_array_equal(mixer["D"], 1.0)
    np.testing.assert_array_equal(mixer["dt_proj"]["bias"], 0.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"patch_size": 7}, "patch_size is 7; expected an even number"),
        ({"kernel_size": 4}, "kernel_size is 4; expected an odd number"),
        ({"layers_with_dwconv": (3,)}, "expected indices of blocks from 0 to 2"),
        ({"layers_with_dwconv": (-1,)}, "layers_with_dwconv"),
        ({"out_indices": (1, 0)}, "increasing numbers from 0 to 2"),
        ({"out_indices": (3,)}, "increasing numbers from 0 to 2"),
        ({"num_convs": 9}, "num_convs is 9"),
        ({"expand": 0.01}, "expand is 0.01"),
        ({"scan_impl": "fast"}, "scan_impl is 'fast'"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(options, words, no_type_checks):
    with pytest.raises(ModelError, match=words):
        small_model(**options)
