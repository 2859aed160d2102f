"""Weights and options of another family are refused by name."""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import mambaout_jax as mo
from mambaout_jax.models import ModelError, create_model
from mambaout_jax.run.errors import RunError
from mambaout_jax.run.pretrained import load_pretrained_for, merge_pretrained
from mambaout_jax.run.workdir import claim_workdir
from mambaout_jax.weights import WeightsError
from mambaout_jax.weights.folder import write_folder
from tests.train import tiny, written_run
from tests.weights import pytorch

NAMES = tuple(f"digit {label}" for label in range(10))
LABELS = {"class_names": list(NAMES)}
VIT = {
    "model.name": "deit_tiny_patch16_224",
    "model.img_size": 32,
    "model.patch_size": 8,
    "model.embed_dim": 16,
    "model.depth": 2,
    "model.num_heads": 2,
}


def build(changes):
    return tiny.config(**changes).build_task().build_model(LABELS)


@pytest.fixture(scope="module")
def vit_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("families") / "vit"
    return workdir, *written_run.write(workdir, NAMES, **VIT)[1:]


@pytest.mark.parametrize("resume", ["same", "any", "never"])
def test_a_run_of_another_family_is_not_resumed(vit_run, resume):
    workdir = vit_run[0]
    with pytest.raises(RunError) as refusal:
        claim_workdir(workdir, tiny.config(resume=resume))
    assert str(refusal.value) == (
        f"workdir {workdir} has a run of deit_tiny_patch16_224, a VisionTransformer, but config.model.name is "
        "'mambaout_femto', a MambaOut; use another --workdir"
    )


def test_another_model_of_the_family_is_a_change_of_the_config(vit_run):
    changed = tiny.config(**{**VIT, "model.name": "vit_tiny_patch16_224"})
    with pytest.raises(RunError, match=r"another config: config\.model\.name was 'deit_tiny_patch16_224'"):
        claim_workdir(vit_run[0], changed)


def test_no_run_starts_from_one_of_another_family(vit_run):
    with pytest.raises(RunError) as refusal:
        load_pretrained_for(vit_run[0], build({}))
    assert str(refusal.value) == (
        f"the weights in {vit_run[0]} are for deit_tiny_patch16_224, a VisionTransformer; config.model.name is "
        "'mambaout_femto', a MambaOut: expected a model of the same family"
    )


def test_no_run_starts_from_a_folder_or_file_of_another_family(vit_run, tmp_path):
    _, vit, weights = vit_run
    state_dict = mo.to_torch(vit, weights["raw"])
    write_folder(tmp_path / "model", vit, state_dict)
    save_file(state_dict, tmp_path / "weights.safetensors")
    with pytest.raises(RunError, match=r"are for deit_tiny_patch16_224, a VisionTransformer; .* a MambaOut"):
        load_pretrained_for(tmp_path / "model", build({}))
    with pytest.raises(WeightsError, match="the weights belong to a VisionTransformer; expected a MambaOut"):
        load_pretrained_for(tmp_path / "weights.safetensors", build({}))


def test_an_option_of_another_family_is_refused_with_the_nearest_of_its_own():
    with pytest.raises(
        RunError,
        match=r"config\.model\.depths is an option of mambaout, .* and mambavision, not of deit_tiny_.*'depth'\?",
    ):
        build({**VIT, "model.depths": (1, 2)})


def test_an_option_of_other_families_is_refused_with_their_names():
    words = r"attention'? is an option of vit, not of mambaout_femto[,;] .*token_mixer"
    with pytest.raises(RunError, match=rf"config\.model\.{words}"):
        build({"model.attention": "full"})
    with pytest.raises(ModelError, match=words):
        create_model("mambaout_femto", attention="full")


@pytest.mark.parametrize("init_head", ["keep", "new"])
def test_a_run_starts_from_one_of_another_image_size(vit_run, init_head):
    workdir, _, weights = vit_run
    model = build({**VIT, "model.img_size": (40, 48)})
    fresh = model.init(jax.random.key(9))
    variables, _ = merge_pretrained(
        load_pretrained_for(workdir, model), model, fresh, init_head=init_head, labels=LABELS
    )
    assert jax.tree.structure(variables) == jax.tree.structure(fresh)
    expected = {**weights["ema"]["params"]}
    resampled = model.resample_params({("pos_embed",): expected["pos_embed"]}, (32, 32))
    expected["pos_embed"] = resampled["pos_embed",]
    if init_head == "new":
        expected["head"] = fresh["params"]["head"]
    pytorch.assert_equal_trees(variables["params"], expected)


def test_a_run_of_other_patches_is_refused_with_what_differs(vit_run):
    with pytest.raises(RunError, match=r"config\.model has patch_size 16, not 8"):
        load_pretrained_for(vit_run[0], build({**VIT, "model.patch_size": 16, "model.img_size": 64}))


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_run_starts_from_weights_of_another_image_size(vit_run, tmp_path, kind):
    _, vit, weights = vit_run
    state_dict = mo.to_torch(vit, weights["raw"])
    if kind == "file":
        save_file(state_dict, tmp_path / "model")
    else:
        write_folder(tmp_path / "model", vit, state_dict)
    model = build({**VIT, "model.img_size": (40, 48)})
    variables = load_pretrained_for(tmp_path / "model", model).variables
    resampled = model.resample_params({("pos_embed",): np.asarray(weights["raw"]["params"]["pos_embed"])}, (32, 32))
    np.testing.assert_array_equal(variables["params"]["pos_embed"], resampled["pos_embed",])
