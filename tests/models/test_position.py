"""Position embeddings are resampled as in PyTorch and timm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mambaout_jax as mo
from mambaout_jax.models import ModelError, find_family
from mambaout_jax.models.layers.position import resample_pos_embed, resample_position_embedding
from tests.models import golden
from tests.timm import load_timm
from tests.weights import pytorch

GRIDS = [((14, 14), (24, 24)), ((14, 14), (7, 9)), ((3, 5), (5, 3)), ((16, 4), (5, 11)), ((2, 2), (7, 1))]
SMALL = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}


def embedding(grid, num_class_tokens=1):
    length = num_class_tokens + grid[0] * grid[1]
    return np.random.default_rng(0).normal(size=(1, length, 6)).astype(np.float32)


def small_model(size, **options):
    return mo.create_model("deit_tiny_patch16_224", img_size=size, **{**SMALL, **options})


def flat(params):
    return {tuple(key.key for key in path): leaf for path, leaf in jax.tree.leaves_with_path(params)}


# Of torch 2.13: F.interpolate(torch.arange(9.).reshape(1, 1, 3, 3) ** 2, (2, 4), mode="bicubic", antialias=...).
TORCH_VALUES = {
    True: [[1.91647, 3.51665, 6.93863, 10.03712], [26.33132, 32.97417, 43.74115, 51.88231]],
    False: [[0.9356, 2.0083, 4.9692, 7.6845], [29.3485, 36.2583, 48.3443, 56.8966]],
}


@pytest.mark.parametrize("antialias", TORCH_VALUES)
def test_values_are_pytorchs(antialias):
    squares = np.arange(9, dtype=np.float32).reshape(1, 9, 1) ** 2
    actual = resample_position_embedding(squares, (2, 4), antialias=antialias)
    np.testing.assert_allclose(actual.reshape(2, 4), TORCH_VALUES[antialias], rtol=0, atol=2e-4)


@pytest.mark.torch
@pytest.mark.parametrize(("old_grid", "grid"), GRIDS)
def test_resampling_equals_timms(old_grid, grid):
    _, torch = load_timm()
    from timm.layers import resample_abs_pos_embed

    values = embedding(old_grid, 0)
    expected = resample_abs_pos_embed(torch.from_numpy(values), list(grid), list(old_grid), 0)
    actual = resample_position_embedding(values, grid, old_grid=old_grid, antialias=True)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected.numpy(), rtol=0, atol=1e-5)


@pytest.mark.torch
@pytest.mark.parametrize(("old_grid", "grid"), GRIDS)
def test_resampling_without_antialiasing_equals_pytorchs(old_grid, grid):
    _, torch = load_timm()
    values = embedding(old_grid, 0)
    as_map = torch.from_numpy(values).reshape(1, *old_grid, -1).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(as_map, grid, mode="bicubic", align_corners=False)
    actual = resample_position_embedding(values, grid, old_grid=old_grid, antialias=False)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected.flatten(2).mT.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "antialias"),
    [("deit_tiny_patch16_224", True), ("vim_tiny", False), ("localvim_tiny", False), ("plainmamba_l1", False)],
)
def test_a_family_resamples_by_the_rule_of_its_reference(name, antialias):
    model = mo.create_model(name, img_size=96, num_classes=5, **golden.shallow_options(find_family(name).name))
    own = model.shapes["params"]["pos_embed"].shape
    values = embedding((4, 4), own[1] - 36)
    actual = model.resample_params({("pos_embed",): values})[("pos_embed",)]
    of_class = [(length - 1) // 2 if name == "vim_tiny" else 0 for length in (17, 37)] if own[1] > 36 else []
    patches = np.delete(values, of_class[:1], axis=1)
    expected = resample_position_embedding(patches, (6, 6), antialias=antialias)
    np.testing.assert_array_equal(np.delete(actual, of_class[1:], axis=1), expected)
    other = resample_position_embedding(patches, (6, 6), antialias=not antialias)
    assert np.abs(expected - other).max() > 0.01


@pytest.mark.torch
@pytest.mark.parametrize("options", [{}, {"class_token": False, "global_pool": "avg"}], ids=str)
def test_a_vit_at_another_size_equals_timms(options):
    _, torch = load_timm()
    from timm.models.vision_transformer import checkpoint_filter_fn

    name = "vit_tiny_patch16_224"
    source = pytorch.noisy_timm(name, **{"img_size": 48, **SMALL, **options})
    theirs = pytorch.noisy_timm(name, seed=1, **{"img_size": (80, 64), **SMALL, **options})
    theirs.load_state_dict(checkpoint_filter_fn(source.state_dict(), theirs))
    images = np.random.default_rng(1).normal(size=(2, 80, 64, 3)).astype(np.float32)
    with torch.inference_mode():
        expected = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    ours = small_model((80, 64), **options)
    variables = mo.from_torch(small_model(48, **options), source.state_dict())
    params = ours.resample_params(flat(variables["params"]), (48, 48))
    variables["params"] = jax.tree.unflatten(jax.tree.structure(variables["params"]), list(params.values()))
    logits = pytorch.logits_of(ours, variables, images)
    assert pytorch.relative_difference(logits, expected) < 1e-5


@pytest.mark.parametrize("antialias", [True, False])
def test_a_constant_stays_constant_and_the_same_grid_is_returned(antialias):
    ones = np.ones((1, 12, 3), np.float32)
    resampled = resample_position_embedding(ones, (5, 2), old_grid=(3, 4), antialias=antialias)
    np.testing.assert_allclose(resampled, 1.0, rtol=1e-6)
    assert resample_position_embedding(ones, (3, 4), old_grid=(3, 4), antialias=antialias) is ones


@pytest.mark.parametrize("of_class", [[], [0], [0, 1, 2], [0, -1]])
def test_embeddings_of_class_tokens_are_kept(of_class):
    values = embedding((4, 4), len(of_class))
    (actual,) = resample_pos_embed(
        {("pos_embed",): values},
        (),
        (3, 6),
        old_grid=None,
        antialias=False,
        class_positions=lambda length: [position % length for position in of_class],
    ).values()
    assert actual.shape == (1, len(of_class) + 18, 6)
    np.testing.assert_array_equal(actual[:, of_class], values[:, of_class])
    patches = resample_position_embedding(np.delete(values, of_class, axis=1), (3, 6), antialias=False)
    np.testing.assert_array_equal(np.delete(actual, of_class, axis=1), patches)


def test_a_model_resamples_its_position_embeddings_only():
    source, model = small_model((32, 48)), small_model((64, 64))
    params = flat(jax.jit(source.init)(jax.random.key(0))["params"])
    resampled = model.resample_params(params, (32, 48))
    expected = flat(jax.eval_shape(model.init, jax.random.key(0))["params"])
    assert {path: leaf.shape for path, leaf in resampled.items()} == {
        path: leaf.shape for path, leaf in expected.items()
    }
    assert [path for path in params if resampled[path] is not params[path]] == [("pos_embed",)]
    assert model.resample_params({}) == {}


def test_the_old_grid_is_square_where_no_size_says_otherwise():
    model = small_model((64, 64))
    square = model.resample_params({("pos_embed",): embedding((4, 4))})[("pos_embed",)]
    known = model.resample_params({("pos_embed",): embedding((4, 4))}, (32, 32))[("pos_embed",)]
    np.testing.assert_array_equal(square, known)
    own = embedding((8, 8))
    assert model.resample_params({("pos_embed",): own})[("pos_embed",)].shape == own.shape
    with pytest.raises(ModelError, match="have 24 patches; expected 4x4, the grid of the training images"):
        model.resample_params({("pos_embed",): embedding((4, 6))})


def test_models_without_position_embeddings_return_what_they_get():
    model = mo.create_model("mambaout_femto", depths=(1,), dims=(8,))
    params = {("stem", "conv1", "weight"): jnp.zeros(3)}
    assert model.resample_params(params, (32, 32)) == params
