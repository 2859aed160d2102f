"""Weights of LocalVim are recognized in the files that its authors publish."""

import argparse
import re

import numpy as np
import pytest

import mambaout_jax as mo
from mambaout_jax.export.torch import export_weights, import_weights
from mambaout_jax.weights import WeightsError, write_folder
from tests.marks import slow_but
from tests.models import golden
from tests.weights import configurations, pytorch
from tests.weights.test_resolve import resolved

PUBLISHED = ["localvim_tiny", "localvim_small", "localvim_tiny_middle_cls_token"]


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_but(["localvim_tiny_middle_cls_token"], PUBLISHED, "nightly"))
def test_the_shapes_of_a_variant_name_it(name):
    found = resolved(configurations.shapes(mo.create_model(name)))
    assert (found.name, found.options, found.others) == (name, {}, ())


@pytest.mark.nightly
def test_weights_in_a_file_as_published_are_loaded(tmp_path):
    torch = pytest.importorskip("torch")
    model = mo.create_model("localvim_tiny", num_classes=5)
    variables = pytorch.draw(model)
    state_dict = {key: torch.from_numpy(value.copy()) for key, value in mo.to_torch(model, variables).items()}
    # Tables that the authors store with the weights.
    state_dict |= {f"rope.freqs_{name}": torch.ones(196, 192) for name in ("cos", "sin")}
    state_dict = {f"module.{key}": value for key, value in state_dict.items()}
    torch.save({"state_dict": state_dict, "epoch": 299, "args": argparse.Namespace(lr=1e-3)}, tmp_path / "w.ckpt")
    with pytest.warns(UserWarning, match="ignored"):
        found, back = mo.load_pretrained(tmp_path / "w.ckpt")
    assert found.name == "localvim_tiny"
    pytorch.assert_equal_trees(back, variables)


def test_tables_of_the_rotary_embedding_are_written_for_the_image_size_in_the_dtype_of_the_weights():
    model = mo.create_model("localvim_tiny", img_size=48, **golden.shallow_options("localvim"))
    variables = pytorch.draw(model)
    half = mo.to_torch(model, variables, dtype="bfloat16")
    assert half["rope.freqs_cos"].shape == (9, model.options["embed_dim"])
    assert {value.dtype for value in half.values()} == {np.dtype("bfloat16")}
    pytorch.assert_equal_trees(mo.from_torch(model, mo.to_torch(model, variables)), variables)


@pytest.mark.slow
def test_an_export_reports_decays_that_differ_between_directions(tmp_path):
    model = pytorch.small_model("localvim_tiny")
    state_dict = mo.to_torch(model, pytorch.draw(model))
    equal = {key: state_dict[re.sub(r"A_log_\d", "A_log_0", key)] for key in state_dict}
    reports = []
    for name, tensors in (("different", state_dict), ("equal", equal)):
        write_folder(tmp_path / name, model, tensors)
        import_weights(str(tmp_path / name), tmp_path / f"run_{name}")
        export_weights(tmp_path / f"run_{name}", str(tmp_path / f"{name}.safetensors"), log=(lines := []).append)
        reports.append([line for line in lines if "A_log" in line])
    assert reports[1] == []
    assert reports[0][0].startswith("A_log_0 to A_log_3 of a block differ; in the original code they share memory")


@pytest.mark.slow
def test_weights_with_fewer_directions_are_refused():
    model = pytorch.small_model("localvim_tiny")
    state_dict = mo.to_torch(model, pytorch.draw(model))
    fewer = {key: value for key, value in state_dict.items() if "_3" not in key}
    with pytest.raises(WeightsError, match=r"layers\.0\.mixer\.A_log_3 is missing"):
        mo.from_torch(model, fewer)


def test_position_embeddings_that_are_not_those_of_square_images_are_refused():
    model = pytorch.small_model("localvim_tiny_middle_cls_token")
    state_dict = mo.to_torch(model, pytorch.draw(model))
    state_dict["pos_embed"] = np.zeros((1, 7, 24), np.float32)
    with pytest.raises(WeightsError, match=r"pos_embed has shape \(1, 7, 24\), which matches no square image size"):
        mo.from_torch(model, state_dict)
