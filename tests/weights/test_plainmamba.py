"""Weights of PlainMamba are recognized in the files that its authors publish, and messages name what they are."""

import argparse

import numpy as np
import pytest
from safetensors.numpy import save_file

import mambaout_jax as mo
from mambaout_jax.weights import WeightsError
from tests.marks import slow_but
from tests.weights import configurations, pytorch
from tests.weights.test_resolve import resolved

SMALL = {"embed_dim": 24, "depth": 2, "num_classes": 5}
PUBLISHED = ["plainmamba_l1", "plainmamba_l2", "plainmamba_l3"]


def small_model(name="plainmamba_l1", **options):
    return mo.create_model(name, **{"img_size": 32, **SMALL, **options})


def as_published(state_dict):
    """Return a state dict with what training saves next to the parameters: counters and what is averaged."""
    counters = {key.replace("running_mean", "num_batches_tracked") for key in state_dict if "running_mean" in key}
    averaged = {key: value for key, value in state_dict.items() if "running_" not in key}
    return {
        **state_dict,
        **{key: np.array(7) for key in counters},
        **{f"ema_{key.replace('.', '_')}": value + 1 for key, value in averaged.items()},
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_but(["plainmamba_l2"], PUBLISHED, "nightly"))
def test_averages_of_training_do_not_hide_the_variant(name):
    shapes = configurations.shapes(mo.create_model(name))
    published = as_published({key: np.broadcast_to(np.zeros(()), shape) for key, shape in shapes.items()})
    found = resolved(pytorch.shapes_of(published))
    assert (found.name, found.options, found.others) == (name, {}, ())


@pytest.mark.run
@pytest.mark.parametrize("name", slow_but(["plainmamba_l1"], PUBLISHED, "nightly"))
def test_weights_in_a_file_as_published_are_loaded(tmp_path, name):
    torch = pytest.importorskip("torch")
    model = mo.create_model(name, num_classes=5)
    variables = pytorch.draw(model)
    tensors = as_published(mo.to_torch(model, variables))
    state_dict = {key: torch.from_numpy(np.array(value)) for key, value in tensors.items()}
    file = {"meta": argparse.Namespace(epoch=300), "state_dict": state_dict, "optimizer": {"state": {}}}
    torch.save(file, tmp_path / "l.pth")
    with pytest.warns(UserWarning, match="ignored"):
        found, back = mo.load_pretrained(tmp_path / "l.pth")
    assert (found.name, found.num_classes) == (name, 5)
    pytorch.assert_equal_trees(back, variables)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_averages_of_training_are_not_read(prefix):
    model = small_model()
    variables = pytorch.draw(model)
    tensors = {prefix + key: value for key, value in as_published(mo.to_torch(model, variables)).items()}
    pytorch.assert_equal_trees(mo.from_torch(model, tensors), variables)


@pytest.mark.parametrize("num_convs", [0, 2, 8])
def test_convolutions_have_the_places_of_a_sequence_with_norms_and_activations(num_convs):
    model = small_model(num_convs=num_convs)
    keys = {key.split(".")[3] for key in mo.to_torch(model, pytorch.draw(model)) if "patch_embed.convs" in key}
    assert keys == {str(3 * index + offset) for index in range(num_convs) for offset in (0, 1)}


@pytest.mark.slow
def test_position_embeddings_of_another_square_size_are_resampled():
    source, model = small_model(img_size=64), small_model(img_size=(48, 80))
    variables = pytorch.draw(source)
    back = mo.from_torch(model, mo.to_torch(source, variables))
    expected = model.resample_params({("pos_embed",): variables["params"]["pos_embed"]}, (64, 64))
    np.testing.assert_array_equal(back["params"]["pos_embed"], expected[("pos_embed",)])
    assert back["params"]["pos_embed"].shape == (1, 3 * 5, 24)
    rectangle = small_model(img_size=(32, 48))
    with pytest.raises(WeightsError, match=r"pos_embed has shape \(1, 6, 24\), which matches no square image size"):
        mo.from_torch(model, mo.to_torch(rectangle, pytorch.draw(rectangle)))


def test_weights_of_another_family_or_variant_are_refused_by_name():
    model, other = small_model(), pytorch.small_model()
    with pytest.raises(WeightsError, match="belong to a MambaOut; expected a PlainMamba"):
        mo.from_torch(model, mo.to_torch(other, pytorch.draw(other)))
    with pytest.raises(WeightsError, match="belong to a PlainMamba; expected a MambaOut"):
        mo.from_torch(other, mo.to_torch(model, pytorch.draw(model)))
    without = small_model("plainmamba_l2")
    with pytest.raises(WeightsError, match=r"do not fit plainmamba_l2: .*dw\.0\.weight is unexpected"):
        mo.from_torch(without, mo.to_torch(model, pytorch.draw(model)))


@pytest.mark.slow
def test_a_file_of_another_variant_is_refused_with_both_names(tmp_path):
    shapes = configurations.shapes(mo.create_model("plainmamba_l1"))
    save_file({key: np.zeros(shape, np.float32) for key, shape in shapes.items()}, tmp_path / "l1.safetensors")
    model = mo.create_model("plainmamba_l2")
    words = r"l1\.safetensors: the weights are those of plainmamba_l1; expected plainmamba_l2"
    with pytest.raises(WeightsError, match=words):
        mo.from_torch(model, tmp_path / "l1.safetensors")
