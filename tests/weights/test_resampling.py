"""Weights of images of another size: position embeddings are resampled, everything else has to fit exactly."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import mambaout_jax as mo
from mambaout_jax.weights import WeightsError, read_checkpoint
from mambaout_jax.weights.folder import write_folder
from mambaout_jax.weights.inspection import inspect_checkpoint
from tests.timm import load_timm
from tests.weights import pytorch

NAME = "deit_tiny_patch16_224"
SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
# Of torch 2.13: F.interpolate(torch.arange(9.).reshape(1, 1, 3, 3) ** 2, (2, 4), mode="bicubic", antialias=True).
TORCH_VALUES = [1.91647, 3.51665, 6.93863, 10.03712, 26.33132, 32.97417, 43.74115, 51.88231]


def vit(img_size, **options):
    return mo.create_model(NAME, img_size=img_size, **{**SMALL, **options})


def state_dict_of(model):
    return mo.to_torch(model, pytorch.draw(model))


def by_path(variables):
    return {tuple(key.key for key in path): leaf for path, leaf in jax.tree.leaves_with_path(variables["params"])}


def assert_resampled(model, variables, source, state_dict, img_size):
    """Compare variables with those of `source`, of which the position embeddings alone are resampled."""
    assert jax.tree.map(np.shape, variables) == jax.tree.map(lambda leaf: leaf.shape, model.shapes)
    params, theirs = by_path(variables), by_path(mo.from_torch(source, state_dict))
    expected = model.resample_params(theirs, img_size)
    for path, leaf in params.items():
        np.testing.assert_array_equal(leaf, expected[path])
        assert np.array_equal(leaf, theirs[path]) == (path != ("pos_embed",))


def test_the_values_are_pytorchs():
    source = vit(48)
    state_dict = state_dict_of(source)
    squares = np.arange(9, dtype=np.float32) ** 2
    state_dict["pos_embed"] = np.repeat(np.append(-1, squares).reshape(1, 10, 1), 24, axis=2).astype(np.float32)
    variables = mo.from_torch(vit((32, 64)), state_dict)
    expected = np.repeat(np.append(-1, TORCH_VALUES).reshape(1, 9, 1), 24, axis=2)
    np.testing.assert_allclose(variables["params"]["pos_embed"], expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("options", [{}, {"class_token": False, "global_pool": "avg"}, {"patch_size": 8}], ids=str)
@pytest.mark.parametrize("img_size", [80, (32, 64)])
def test_a_state_dict_of_square_images_fits_a_model_of_any_size(img_size, options):
    source, model = vit(48, **options), vit(img_size, **options)
    state_dict = state_dict_of(source)
    assert_resampled(model, mo.from_torch(model, state_dict), source, state_dict, (48, 48))


@pytest.mark.slow
def test_the_model_of_a_bare_file_is_built_at_the_size_that_is_asked_for(tmp_path):
    source = mo.create_model(NAME, img_size=64)
    state_dict = state_dict_of(source)
    save_file(state_dict, tmp_path / "weights.safetensors")
    model, variables = mo.load_pretrained(tmp_path / "weights.safetensors", name=NAME, img_size=(32, 96))
    assert model.input_spec.size == (32, 96)
    assert_resampled(model, variables, source, state_dict, (64, 64))


@pytest.mark.parametrize("img_size", [(64, 64), (48, 32)])
def test_a_folder_says_the_size_of_images_that_are_not_square(tmp_path, img_size):
    source = vit((32, 48))
    write_folder(tmp_path / "model", source, state_dict := state_dict_of(source))
    model, variables = mo.load_pretrained(tmp_path / "model", img_size=img_size)
    assert_resampled(model, variables, source, state_dict, (32, 48))


def test_a_folder_with_one_number_for_both_sides_is_read(tmp_path):
    source = vit(48)
    write_folder(tmp_path / "model", source, state_dict := state_dict_of(source))
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["model_args"]["img_size"] = 48
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    model, variables = mo.load_pretrained(tmp_path / "model", img_size=64)
    assert_resampled(model, variables, source, state_dict, (48, 48))


def test_the_own_size_is_loaded_bit_for_bit():
    model = vit((32, 48))
    variables = pytorch.draw(model)
    pytorch.assert_equal_trees(mo.from_torch(model, mo.to_torch(model, variables)), variables)


def test_embeddings_of_no_square_images_are_refused():
    with pytest.raises(WeightsError) as refusal:
        mo.from_torch(vit(64), state_dict_of(vit((32, 48))))
    assert str(refusal.value) == (
        "pos_embed has shape (1, 7, 24), which matches no square image size (the model's own shape is (1, 17, 24)); "
        "for non-square images, use a folder whose config.json contains the image size"
    )


@pytest.mark.slow
def test_everything_else_has_to_fit_exactly_with_all_differences_listed():
    state_dict = state_dict_of(vit(48))
    state_dict["dist_token"] = state_dict.pop("cls_token")
    state_dict["norm.bias"] = np.zeros(7, np.float32)
    with pytest.raises(WeightsError) as refusal:
        mo.from_torch(vit(64), state_dict)
    assert str(refusal.value) == (
        f"the weights do not fit {NAME}: cls_token is missing; dist_token is unexpected; norm.bias has shape (7,), "
        "expected (24,)"
    )


@pytest.mark.parametrize("width", [16, 32])
def test_embeddings_of_another_width_are_another_model(width):
    state_dict = state_dict_of(vit(48))
    state_dict["pos_embed"] = np.zeros((1, 10, width), np.float32)
    with pytest.raises(WeightsError, match=r"do not fit .*: pos_embed has shape .*, expected \(1, 10, 24\)$"):
        mo.from_torch(vit(64), state_dict)


def test_other_patches_than_the_models_are_listed(tmp_path):
    source = vit(40, patch_size=8)
    write_folder(tmp_path / "model", source, state_dict_of(source))
    with pytest.raises(WeightsError, match=r"patch_embed\.proj\.weight has shape"):
        mo.from_torch(vit(48), tmp_path / "model")


@pytest.mark.slow
def test_inspection_says_for_which_images_weights_are(tmp_path):
    source = mo.create_model(NAME, img_size=64)
    save_file(state_dict_of(source), tmp_path / "weights.safetensors")
    found = inspect_checkpoint(read_checkpoint(tmp_path / "weights.safetensors"))
    assert found["image size"] == "64x64; pos_embed is resampled when loaded at another img_size"
    assert found["differences"] == "none"
    other = mo.create_model("mambaout_femto")
    shapes = pytorch.shapes_of(mo.to_torch(other, pytorch.draw(other)))
    assert "image size" not in inspect_checkpoint(pytorch.checkpoint_of(shapes))


@pytest.mark.torch
@pytest.mark.parametrize("img_size", [64, (32, 80)])
def test_a_vit_at_another_size_equals_timms(tmp_path, img_size):
    timm, _ = load_timm()
    options = {"depth": 2, "num_classes": 5}
    source = pytorch.noisy_timm("vit_tiny_patch16_224", img_size=48, **options)
    timm.models.save_for_hf(source, tmp_path / "model", model_args={"img_size": 48, **options}, safe_serialization=True)
    theirs = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True, img_size=img_size).eval()
    model, variables = mo.load_pretrained(tmp_path / "model", img_size=img_size)
    images = pytorch.random_images(model, count=2)
    expected = pytorch.timm_logits(theirs, images)
    assert pytorch.relative_difference(pytorch.logits_of(model, variables, images), expected) < 1e-5
    pytorch.assert_equal_trees(mo.from_torch(model, source.state_dict()), variables)


@pytest.mark.torch
def test_a_vit_of_224_px_at_384_px_equals_timms(tmp_path):
    timm, _ = load_timm()
    source = pytorch.noisy_timm(NAME)
    save_file({key: value.numpy() for key, value in source.state_dict().items()}, tmp_path / "weights.safetensors")
    theirs = pytorch.noisy_timm(NAME, seed=1, img_size=384)
    state_dict = timm.models.vision_transformer.checkpoint_filter_fn(source.state_dict(), theirs)
    theirs.load_state_dict(state_dict, strict=True)
    model, variables = mo.load_pretrained(tmp_path / "weights.safetensors", name="deit_tiny_patch16_224", img_size=384)
    images = pytorch.random_images(model)
    expected = pytorch.timm_logits(theirs, images)
    assert pytorch.relative_difference(pytorch.logits_of(model, variables, images), expected) < 1e-5
