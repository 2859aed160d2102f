"""Weights start a run of other classes, channels and image sizes: only what is kept has to match."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import mambaout_jax as mo
from mambaout_jax.run.errors import RunError
from mambaout_jax.run.pretrained import load_pretrained_for, merge_pretrained
from mambaout_jax.tasks.classification.task import Classification
from mambaout_jax.weights import WeightsError
from mambaout_jax.weights.folder import write_folder
from tests.marks import slow_but
from tests.timm import load_timm
from tests.train import tiny, written_run
from tests.weights import pytorch

NAMES = tuple(f"digit {label}" for label in range(10))
MAMBAOUT = {"model.in_chans": 3}
VIT = {
    "model.name": "vit_tiny_patch16_224",
    "model.img_size": 32,
    "model.patch_size": 8,
    "model.embed_dim": 16,
    "model.depth": 2,
    "model.num_heads": 2,
    "model.in_chans": 3,
}
SOURCES = ("workdir", "folder", "file", "original")


def build(names=NAMES, **changes):
    return tiny.config(**changes).build_task().build_model({"class_names": list(names)})


def write(tmp_path, source, base):
    """Write random weights in one form; return its path and the variables."""
    workdir = tmp_path / "run"
    _, model, weights = written_run.write(workdir, NAMES, **base)
    if source == "workdir":
        return workdir, model, weights["ema"]
    variables = weights["raw"]
    if source == "folder":
        write_folder(tmp_path / "folder", model, mo.to_torch(model, variables))
        return tmp_path / "folder", model, variables
    state_dict = mo.to_torch(model, variables, key_format="mambaout" if source == "original" else None)
    save_file(state_dict, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors", model, variables


def remove_head(path, model, *, keep_config=False):
    """Remove the last layer from written PyTorch weights, as timm's num_classes=0 does."""
    from safetensors.numpy import load_file

    file = path / "model.safetensors" if path.is_dir() else path
    prefixes = ".".join((*model.classifier, "")), "head.fc2."
    save_file({k: v for k, v in load_file(file).items() if not k.startswith(prefixes)}, file)
    if path.is_dir() and not keep_config:
        config = json.loads((path / "config.json").read_text())
        config["num_classes"] = config["pretrained_cfg"]["num_classes"] = 0
        (path / "config.json").write_text(json.dumps(config))


CASES = [(base, source) for base in (MAMBAOUT, VIT) for source in SOURCES if base is MAMBAOUT or source != "original"]
WITHOUT_RUN = [case for case in CASES if case[1] != "workdir"]


@pytest.mark.slow
@pytest.mark.parametrize(("base", "source"), WITHOUT_RUN)
@pytest.mark.parametrize("size", slow_but([48], [32, 48]))
def test_a_backbone_without_a_last_layer_starts_a_run_with_a_new_one(tmp_path, base, source, size):
    path, theirs, variables = write(tmp_path, source, base)
    remove_head(path, theirs)
    model = build(("ant", "bee"), **{**base, "model.img_size": size})
    fresh = model.init(jax.random.key(9))
    pretrained = load_pretrained_for(path, model)
    merged, sentence = merge_pretrained(pretrained, model, fresh, init_head="new", labels={})
    assert jax.tree.structure(merged) == jax.tree.structure(fresh)
    assert "new last layer" in sentence
    pytorch.assert_equal_trees(
        merged["params"]["patch_embed" if base is VIT else "stem"],
        variables["params"]["patch_embed" if base is VIT else "stem"],
    )


@pytest.mark.slow
@pytest.mark.parametrize(("base", "source"), WITHOUT_RUN)
def test_a_backbone_without_a_last_layer_is_refused_where_the_layer_is_needed(tmp_path, base, source):
    path, theirs, _ = write(tmp_path, source, base)
    remove_head(path, theirs)
    with pytest.raises(WeightsError, match=r"have no last layer .*init_head=new"):
        load_pretrained_for(path, build(**base), head_task=Classification)


@pytest.mark.slow
def test_other_missing_tensors_are_still_listed(tmp_path):
    path, theirs, _ = write(tmp_path, "file", MAMBAOUT)
    remove_head(path, theirs)
    from safetensors.numpy import load_file

    save_file({k: v for k, v in load_file(path).items() if k != "stem.conv1.bias"}, path)
    for head_task in (None, Classification):
        with pytest.raises(WeightsError, match=r"stem\.conv1\.bias is missing"):
            load_pretrained_for(path, build(**MAMBAOUT), head_task=head_task)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_mambaout", "vit_tiny_patch16_224"])
def test_a_variant_without_its_last_layer_is_recognized_and_the_missing_layer_named(tmp_path, name):
    model = mo.create_model(name)
    shapes = mo.to_torch(model, jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), model.shapes))
    save_file(shapes, tmp_path / "w.safetensors")
    remove_head(tmp_path / "w.safetensors", model)
    with pytest.raises(WeightsError, match=r"have no last layer"):
        mo.load_pretrained(tmp_path / "w.safetensors", name=name)


def adapted(kernel, in_chans):
    """timm's rule: one channel is the sum; others repeat the channels and keep the sum over a constant image."""
    base = kernel.shape[-2]
    if in_chans == 1:
        return kernel.sum(-2, keepdims=True)
    return np.concatenate([kernel] * in_chans, -2)[..., :in_chans, :] * np.float32(base / in_chans)


@pytest.mark.slow
@pytest.mark.parametrize(("base", "source"), CASES)
@pytest.mark.parametrize("in_chans", slow_but([4], [1, 3, 4]))
def test_the_first_layer_is_adapted_to_another_number_of_channels(tmp_path, base, source, in_chans):
    path, _, variables = write(tmp_path, source, base)
    changes = {**base, "model.in_chans": in_chans}
    model = build(**changes)
    pretrained = load_pretrained_for(path, model, head_task=Classification)
    layer = model.first_conv
    kernel = np.asarray(get(variables, layer)["weight"])
    np.testing.assert_allclose(get(pretrained.variables, layer)["weight"], adapted(kernel, in_chans), rtol=1e-6)
    assert ("first layer adapted from 3" in pretrained.description) == (in_chans != 3)
    assert jax.tree.map(np.shape, pretrained.variables) == jax.tree.map(np.shape, model.init(jax.random.key(0)))


def get(variables, path):
    leaf = variables["params"]
    for name in path:
        leaf = leaf[name]
    return leaf


@pytest.mark.slow
@pytest.mark.parametrize("in_chans", [1, 4])
def test_load_pretrained_adapts_the_channels(tmp_path, in_chans):
    path, _, variables = write(tmp_path, "folder", MAMBAOUT)
    model, loaded = mo.load_pretrained(path, in_chans=in_chans, mean=(0.5,) * in_chans, std=(0.5,) * in_chans)
    assert model.in_chans == in_chans
    kernel = np.asarray(get(variables, model.first_conv)["weight"])
    np.testing.assert_allclose(get(loaded, model.first_conv)["weight"], adapted(kernel, in_chans), rtol=1e-6)


@pytest.mark.slow
def test_other_options_than_classes_channels_and_size_are_still_refused(tmp_path):
    path, _, _ = write(tmp_path, "workdir", MAMBAOUT)
    with pytest.raises(RunError, match="stem_mid_norm False, not True"):
        load_pretrained_for(path, build(**{**MAMBAOUT, "model.stem_mid_norm": False}))


@pytest.mark.torch
@pytest.mark.parametrize("in_chans", [1, 2, 4, 6, 7])
def test_the_first_layer_equals_that_of_timm(in_chans):
    _, torch = load_timm()
    from timm.models import adapt_input_conv

    from mambaout_jax.weights.input_channels import adapt_kernel

    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 8)).astype(np.float32)
    theirs = adapt_input_conv(in_chans, torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())).numpy()
    np.testing.assert_allclose(adapt_kernel(kernel, in_chans), theirs.transpose(2, 3, 1, 0), rtol=1e-6)
