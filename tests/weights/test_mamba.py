"""Weights of models with a state space model are exported under names in timm's style and read back unchanged."""

import jax
import numpy as np
import pytest

import mambaout_jax as mo
from mambaout_jax.ops import SCAN_ORDERS
from mambaout_jax.weights import (
    LogitsCheck,
    WeightsError,
    random_images,
    resolve_model,
    verify,
    write_file,
    write_folder,
)
from tests.weights import configurations, pytorch


def mamba(scan_order="causal", **options):
    return pytorch.small_model("mamba_femto", scan_order=scan_order, **options)


def test_names_and_axes_are_those_of_mamba_ssm():
    state_dict = mo.to_torch(model := mamba("cross", dims=(32, 24)), pytorch.draw(model))
    prefix = "stages.0.blocks.0.ssm."
    shapes = {key.removeprefix(prefix): v.shape for key, v in state_dict.items() if key.startswith(prefix)}
    one = {
        "x_proj.weight": (34, 32),
        "dt_proj.weight": (32, 2),
        "dt_proj.bias": (32,),
        "A_log": (32, 16),
        "D": (32,),
    }
    assert shapes == {f"{direction}.{key}": shape for direction in range(4) for key, shape in one.items()}


@pytest.mark.parametrize("scan_order", SCAN_ORDERS)
def test_round_trip_keeps_every_bit(scan_order, tmp_path):
    model = mamba(scan_order)
    variables = pytorch.draw(model)
    write_file(tmp_path / "mamba.safetensors", mo.to_torch(model, variables))
    pytorch.assert_equal_trees(mo.from_torch(model, tmp_path / "mamba.safetensors"), variables)


@pytest.mark.slow
@pytest.mark.parametrize("scan_order", SCAN_ORDERS)
def test_the_config_of_a_folder_names_its_model(scan_order, tmp_path):
    model = mamba(scan_order, act_layer="silu")
    variables = pytorch.draw(model)
    write_folder(tmp_path / "model", model, mo.to_torch(model, variables))
    back, read = mo.load_pretrained(tmp_path / "model")
    pytorch.assert_equal_trees(read, variables)
    assert (back.name, back.options, back.input_spec) == (model.name, model.options, model.input_spec)


@pytest.mark.slow
def test_another_scan_order_is_not_guessed():
    shapes = configurations.shapes(mo.create_model("mamba_femto", scan_order="bidirectional", num_classes=7))
    with pytest.raises(
        WeightsError, match="the closest, mamba_femto, differs in 90 tensors:"
    ):  # 5 tensors in 18 blocks
        resolve_model(pytorch.checkpoint_of(shapes))


def test_the_original_names_have_none_for_it():
    model = mamba()
    with pytest.raises(
        WeightsError, match=r"^key format 'mambaout' cannot express mamba_femto: token_mixer is 'conv_ssm'"
    ):
        mo.to_torch(model, pytorch.draw(model), "mambaout")


@pytest.mark.slow
def test_a_block_without_its_state_space_model_is_listed():
    model = mamba()
    state_dict = mo.to_torch(model, pytorch.draw(model))
    del state_dict["stages.1.blocks.0.ssm.0.D"]
    with pytest.raises(WeightsError, match=r"do not fit mamba_femto: stages\.1\.blocks\.0\.ssm\.0\.D is missing$"):
        mo.from_torch(model, state_dict)
    twin = pytorch.small_model("mambaout_femto")
    with pytest.raises(WeightsError, match=r"stages\.0\.blocks\.0\.ssm\.0\.A_log is unexpected"):
        mo.from_torch(twin, state_dict)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mamba_femto", "mambaout_femto"])
def test_live_timm_cannot_build_it_and_that_is_said(name, tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "_load_timm", lambda: pytest.fail("timm is not needed to say so"))
    model = pytorch.small_model(name, token_mixer="conv_ssm")
    variables = pytorch.draw(model)
    write_folder(tmp_path / "model", model, mo.to_torch(model, variables))
    check = LogitsCheck(model, variables, random_images(model, 1))
    with pytest.raises(WeightsError, match=r"^timm has no MambaOut with token_mixer 'conv_ssm'; omit --verify timm$"):
        check.require_timm(str(tmp_path / "model"))


@pytest.mark.slow
def test_logits_of_the_copy_are_those_of_the_model(tmp_path):
    model = mamba("bidirectional")
    variables = model.init(jax.random.key(0))
    write_file(tmp_path / "mamba.safetensors", mo.to_torch(model, variables))
    read = mo.from_torch(model, tmp_path / "mamba.safetensors")
    x = pytorch.random_images(model)
    np.testing.assert_array_equal(pytorch.logits_of(model, read, x), pytorch.logits_of(model, variables, x))
