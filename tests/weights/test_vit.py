"""Weights of a Vision Transformer are converted to timm and back, alone or with their config.json."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import mambaout_jax as mo
from mambaout_jax.models import ModelError
from mambaout_jax.weights import LogitsCheck, WeightsError, random_images, read_checkpoint, resolve_model
from mambaout_jax.weights.folder import write_folder
from mambaout_jax.weights.inspection import inspect_checkpoint
from tests.timm import load_timm
from tests.weights import pytorch

SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
# Of the largest logit, in float32.
TOLERANCE = 1e-4
POOLINGS = [
    {},
    {"global_pool": "avg"},
    {"global_pool": "avg", "fc_norm": False},
    {"global_pool": "avg", "class_token": False},
    {"global_pool": "avg", "class_token": False, "fc_norm": False},
    {"fc_norm": True},
]


def small_model(name="deit_tiny_patch16_224", **options):
    return mo.create_model(name, **{"img_size": 48, **SMALL, **options})


def test_a_parameter_of_the_model_itself_is_named_where_it_does_not_fit():
    model = small_model()
    state_dict = mo.to_torch(model, pytorch.draw(model))
    state_dict["dist_token"] = state_dict.pop("cls_token")
    with pytest.raises(WeightsError, match="cls_token is missing; dist_token is unexpected"):
        mo.from_torch(model, state_dict)
    with pytest.raises(WeightsError, match="belong to a VisionTransformer; expected a MambaOut"):
        mo.from_torch(pytorch.small_model(), mo.to_torch(model, pytorch.draw(model)))


@pytest.mark.parametrize(
    "options", [*POOLINGS, {"img_size": (32, 48)}, {"attention": "causal", **POOLINGS[3]}], ids=str
)
def test_a_folder_is_read_as_it_was_written(tmp_path, options):
    model = small_model("vit_tiny_patch16_224", **options)
    variables = pytorch.draw(model)
    write_folder(tmp_path / "model", model, mo.to_torch(model, variables), class_names=list("abcde"))
    again, back = mo.load_pretrained(tmp_path / "model")
    assert (again.name, again.options, again.input_spec) == (model.name, model.options, model.input_spec)
    pytorch.assert_equal_trees(back, variables)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["global_pool"] == model.options["global_pool"]
    assert config["pretrained_cfg"]["fixed_input_size"] is True
    found = inspect_checkpoint(read_checkpoint(tmp_path / "model"))
    assert found["differences"] == "none"


# As timm's hub has them.
CONFIG = {
    "architecture": "vit_tiny_patch16_224",
    "num_classes": 5,
    "num_features": 192,
    "global_pool": "token",
    "pretrained_cfg": {"input_size": [3, 48, 48], "fixed_input_size": True, "mean": [0.5] * 3, "std": [0.5] * 3},
}


def read(folder, **changes):
    model = small_model()
    write_folder(folder / "model", model, mo.to_torch(model, pytorch.draw(model)))
    (folder / "model" / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    return resolve_model(read_checkpoint(folder / "model")).options


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, {"global_pool": "token", "img_size": (48, 48)}),
        ({"global_pool": "avg"}, {"global_pool": "avg"}),
        ({"global_pool": "token", "model_args": {"global_pool": "avg", "fc_norm": None}}, {"global_pool": "avg"}),
        ({"model_args": {"img_size": 64}}, {"img_size": 64}),
        ({"model_args": {"img_size": [64, 32], "fc_norm": False}}, {"img_size": (64, 32), "fc_norm": False}),
    ],
)
def test_a_config_says_pooling_and_size_as_timm_reads_them(tmp_path, changes, options):
    found = read(tmp_path, **changes)
    assert {key: found[key] for key in options} == options
    assert mo.create_model("vit_tiny_patch16_224", **found).input_spec.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_args": {"fc_norm": 1}}, "fc_norm is 1; expected True or False, or None"),
        (
            {"model_args": {"img_size": [1, 2, 3]}},
            r"img_size is \[1, 2, 3\]; expected an integer or a pair of integers",
        ),
        ({"model_args": {"class_token": None}}, "class_token is unset; expected True or False"),
        ({"model_args": {"qk_norm": True}}, "'qk_norm', not an option of vit_tiny_patch16_224"),
        ({"global_pool": 3}, "global_pool 3; expected a string"),
    ],
)
def test_a_config_that_does_not_fit_is_named(tmp_path, changes, words):
    with pytest.raises(WeightsError, match=words):
        read(tmp_path, **changes)


def test_a_pooling_that_is_not_there_is_refused_by_the_model(tmp_path, no_type_checks):
    with pytest.raises(ModelError, match="global_pool is 'map'; expected 'token' or 'avg'"):
        mo.create_model("vit_tiny_patch16_224", **read(tmp_path, global_pool="map"))


def load_strictly(theirs, state_dict):
    """Let timm take a state dict in place of zeros."""
    _, torch = load_timm()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.zero_()
    theirs.load_state_dict({key: torch.from_numpy(value) for key, value in state_dict.items()}, strict=True)


def check_both_ways(name, **options):
    ours = mo.create_model(name, **options)
    attention = options.pop("attention", "full")
    theirs = pytorch.noisy_timm(name, **options)
    images = pytorch.random_images(ours, count=2)
    _, torch = load_timm()

    def their_logits():
        with torch.inference_mode():
            x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
            return theirs(x, is_causal=attention == "causal").numpy()

    expected = their_logits()
    variables = mo.from_torch(ours, theirs.state_dict())
    assert pytorch.relative_difference(pytorch.logits_of(ours, variables, images), expected) < TOLERANCE
    assert np.ptp(expected) > 0.1, "logits that are all the same prove nothing"
    back = mo.to_torch(ours, variables)
    pytorch.assert_equal_state_dicts(back, {key: value.numpy().copy() for key, value in theirs.state_dict().items()})
    load_strictly(theirs, back)
    np.testing.assert_array_equal(their_logits(), expected)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "vit_tiny_patch16_224"])
def test_variant_at_full_width_equals_timms_both_ways(name):
    check_both_ways(name)


@pytest.mark.torch
@pytest.mark.parametrize(
    "options",
    [
        *POOLINGS,
        {"img_size": (32, 80), "patch_size": 8, "mlp_ratio": 2.5, "in_chans": 1},
        {"attention": "causal", **POOLINGS[3]},
        {"attention": "causal", **POOLINGS[1]},
    ],
    ids=str,
)
def test_narrow_model_equals_timms_both_ways(options):
    check_both_ways("vit_small_patch16_224", **{"img_size": 48, **SMALL, **options})


@pytest.mark.torch
@pytest.mark.parametrize("options", [{}, {"global_pool": "avg"}, {"img_size": (32, 48)}], ids=str)
def test_the_live_timm_reads_file_and_folder(tmp_path, options):
    model = small_model("vit_tiny_patch16_224", **options)
    variables = mo.from_torch(
        model, pytorch.noisy_timm(model.name, **{"img_size": 48, **SMALL, **options}).state_dict()
    )
    check = LogitsCheck(model, variables, random_images(model, 2))
    write_folder(tmp_path / "model", model, mo.to_torch(model, variables))
    assert "the logits agree" in check.require_timm(str(tmp_path / "model"))
    save_file(mo.to_torch(model, variables), tmp_path / "weights.safetensors")
    assert "the logits agree" in check.require_timm(str(tmp_path / "weights.safetensors"))


@pytest.mark.torch
def test_a_causal_model_is_none_that_timm_builds(tmp_path):
    model = small_model(attention="causal", global_pool="avg")
    check = LogitsCheck(model, variables := pytorch.draw(model), random_images(model, 1))
    save_file(mo.to_torch(model, variables), tmp_path / "weights.safetensors")
    with pytest.raises(WeightsError, match="timm has no VisionTransformer with attention 'causal'"):
        check.require_timm(str(tmp_path / "weights.safetensors"))


@pytest.mark.torch
def test_the_live_timm_writes_what_we_read(tmp_path):
    timm, _ = load_timm()
    options = {"img_size": 48, **SMALL, "global_pool": "avg"}
    theirs = pytorch.noisy_timm("vit_tiny_patch16_224", **options)
    timm.models.save_for_hf(theirs, tmp_path / "model", model_args=options, safe_serialization=True)
    model, variables = mo.load_pretrained(tmp_path / "model")
    assert {key: model.options[key] for key in options} == {**options, "img_size": (48, 48)}
    pytorch.assert_equal_trees(variables, mo.from_torch(model, theirs.state_dict()))
