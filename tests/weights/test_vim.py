"""Weights of Vim are recognized in the files that its authors publish, and messages name what they are."""

import argparse

import numpy as np
import pytest
from safetensors.numpy import save_file

import mambaout_jax as mo
from mambaout_jax.export.torch import import_weights
from mambaout_jax.weights import WeightsError
from tests.marks import slow_but
from tests.weights import configurations, pytorch
from tests.weights.test_resolve import resolved, write_zeros

SMALL = {"embed_dim": 24, "depth": 2, "num_classes": 5}


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_but(["vim_tiny"], ["vim_tiny", "vim_small"], "nightly"))
def test_published_weights_of_patches_side_by_side_are_not_those_of_small_images(name):
    found = resolved(configurations.shapes(mo.create_model(name)))
    assert (found.name, found.options, found.others) == (name, {}, ())
    larger = resolved(configurations.shapes(mo.create_model(name, img_size=384)))
    assert (larger.name, larger.options, larger.others) == (name, {"img_size": (384, 384)}, ())


@pytest.mark.slow
def test_weights_of_overlapping_patches_are_ambiguous_without_a_name(tmp_path):
    plus = mo.create_model("vim_tiny_plus", num_classes=5)
    source = mo.create_model("vim_tiny", img_size=432, num_classes=5)
    assert configurations.shapes(source) == configurations.shapes(plus)
    file = tmp_path / "w.safetensors"
    save_file(mo.to_torch(source, variables := pytorch.draw(source)), file)
    with pytest.raises(WeightsError, match="vim_tiny_plus and vim_tiny have these tensors but differ in stride; name"):
        mo.load_pretrained(file)
    for name, size in (("vim_tiny_plus", 224), ("vim_tiny", 432)):
        found, back = mo.load_pretrained(file, name=name)
        assert (found.name, found.input_spec.size) == (name, (size, size))
        pytorch.assert_equal_trees(back, variables)


@pytest.mark.slow
def test_weights_of_patches_side_by_side_are_not_read_as_small_images_of_overlapping_ones(tmp_path):
    write_zeros(file := tmp_path / "w.safetensors", configurations.shapes(mo.create_model("vim_tiny", num_classes=5)))
    words = f"^{file}: the weights are those of vim_tiny; as vim_tiny_plus they would be for images of 120x120 px only"
    with pytest.raises(WeightsError, match=words):
        mo.load_pretrained(file, name="vim_tiny_plus")
    with pytest.raises(WeightsError, match=words):
        import_weights(str(file), tmp_path / "imported", name="vim_tiny_plus")
    model, variables = mo.load_pretrained(file, name="vim_tiny_plus", img_size=224)
    assert variables["params"]["pos_embed"].shape == model.shapes["params"]["pos_embed"].shape == (1, 27 * 27 + 1, 192)


def test_weights_of_patches_side_by_side_start_a_model_of_overlapping_patches():
    source = mo.create_model("vim_tiny", img_size=48, **SMALL)
    variables = mo.from_torch(
        mo.create_model("vim_tiny_plus", img_size=48, **SMALL), mo.to_torch(source, pytorch.draw(source))
    )
    assert variables["params"]["pos_embed"].shape == (1, 5 * 5 + 1, 24)


@pytest.mark.run
def test_weights_in_a_file_as_published_are_loaded(tmp_path):
    torch = pytest.importorskip("torch")
    model = mo.create_model("vim_tiny", num_classes=5)
    variables = pytorch.draw(model)
    state_dict = {key: torch.from_numpy(value.copy()) for key, value in mo.to_torch(model, variables).items()}
    file = {"model": state_dict, "optimizer": {}, "epoch": 299, "args": argparse.Namespace(lr=1e-3)}
    torch.save(file, tmp_path / "vim.pth")
    with pytest.warns(UserWarning, match="ignored"):
        found, back = mo.load_pretrained(tmp_path / "vim.pth")
    assert found.name == "vim_tiny"
    pytorch.assert_equal_trees(back, variables)


def test_tables_of_the_rotary_embedding_are_not_read():
    options = {**SMALL, "rope": True, "class_token": "first", "img_size": 32}
    model = mo.create_model("vim_tiny", **options)
    variables = pytorch.draw(model)
    state_dict = mo.to_torch(model, variables)
    state_dict |= {f"rope.freqs_{name}": np.zeros((4, 24), np.float32) for name in ("cos", "sin")}
    pytorch.assert_equal_trees(mo.from_torch(model, state_dict), variables)


@pytest.mark.slow
def test_weights_of_another_type_of_scan_are_refused():
    v1, v2 = (mo.create_model("vim_tiny", img_size=32, bimamba_type=name, **SMALL) for name in ("v1", "v2"))
    with pytest.raises(WeightsError, match="conv1d_b"):
        mo.from_torch(v2, mo.to_torch(v1, pytorch.draw(v1)))


@pytest.mark.run
def test_weights_of_another_variant_are_refused_with_the_names_of_both(tmp_path):
    source = mo.create_model("vim_tiny", num_classes=5)
    save_file(mo.to_torch(source, pytorch.draw(source)), tmp_path / "w.safetensors")
    words = r"w\.safetensors: the weights are those of vim_tiny; expected vim_small$"
    with pytest.raises(WeightsError, match=words):
        mo.load_pretrained(tmp_path / "w.safetensors", name="vim_small")
    with pytest.raises(WeightsError, match=r"w\.safetensors: the weights belong to a Vim; expected a LocalVim"):
        mo.load_pretrained(tmp_path / "w.safetensors", name="localvim_tiny")
