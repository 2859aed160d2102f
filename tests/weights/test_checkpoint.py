"""Weights from files, folders and the hub; timm reads what we write and writes what we read."""

import os

import numpy as np
import pytest

from mambaout_jax.models import create_model
from mambaout_jax.weights.checkpoint import read_checkpoint
from mambaout_jax.weights.errors import WeightsError
from mambaout_jax.weights.files import write_file
from mambaout_jax.weights.folder import write_folder
from tests.timm import load_timm
from tests.weights.test_files import assert_same
from tests.weights.test_folder import MODEL, PREPROCESSING, TENSORS


def assert_refused(source, words):
    with pytest.raises(WeightsError, match=words) as refusal:
        read_checkpoint(source)
    assert str(refusal.value).startswith(os.fspath(source))
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_a_file_has_no_config(tmp_path, kind):
    write_file(tmp_path / "a.safetensors", TENSORS)
    found = read_checkpoint(kind(tmp_path / "a.safetensors"))
    assert found.origin == str(tmp_path / "a.safetensors")
    assert_same(found.tensors, TENSORS)
    assert found.shapes == {"stem.weight": (2, 3, 4)}
    assert found.dtypes == {"stem.weight": "float32"}
    assert (found.wrapper, found.config) == (None, None)


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_a_folder_has_one(tmp_path, prefix, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_folder("model", MODEL, TENSORS)
    for place in ("model", "~/model", tmp_path / "model"):
        found = read_checkpoint(f"{prefix}{place}")
        assert found.origin == f"{prefix}{place}"
        assert found.config.architecture == "mambaout_femto"
        assert_same(found.tensors, TENSORS)


def test_what_is_not_there_is_named(tmp_path):
    assert_refused(tmp_path / "none", "does not exist; expected a weights file, a folder or hf-hub:ORG/NAME")
    assert_refused(tmp_path / ("x" * 300), "does not exist")
    assert_refused("timm/mambaout_tiny.in1k", "does not exist; .* hf-hub:ORG/NAME")
    assert_refused("", "does not exist")
    assert_refused(f"local-dir:{tmp_path}/none", "is not a folder; expected a folder in timm's format")
    write_file(tmp_path / "a.safetensors", TENSORS)
    assert_refused(f"local-dir:{tmp_path}/a.safetensors", "is not a folder")


CASES = [
    ("test_mambaout", {"num_classes": 7}),
    ("test_mambaout", {"num_classes": 3, "in_chans": 1}),
    ("mambaout_femto", {"depths": (1, 2), "dims": (16, 24), "conv_ratio": 1.5, "ls_init_value": 1e-5}),
]


@pytest.mark.torch
@pytest.mark.parametrize(("name", "options"), CASES)
def test_what_timm_saves_is_read_with_its_options(tmp_path, name, options):
    timm, _ = load_timm()
    theirs = timm.create_model(name, **options)
    timm.models.save_for_hf(theirs, tmp_path / "model", safe_serialization=True)
    found = read_checkpoint(tmp_path / "model")
    assert_same(found.tensors, {key: value.numpy() for key, value in theirs.state_dict().items()})
    assert found.config.architecture == name
    assert found.config.options == {"num_classes": 1000, "in_chans": 3, **options}
    ours = create_model(name, **found.config.options, **found.config.preprocessing)
    in_chans = options.get("in_chans", 3)
    default = create_model(name, **options).input_spec
    if in_chans == 3:
        assert ours.input_spec == default
    else:
        assert ours.input_spec == default._replace(mean=(pytest.approx(0.449),), std=(pytest.approx(0.226),))
    timm.models.save_for_hf(theirs, tmp_path / "pickled", safe_serialization=False)
    assert_same(read_checkpoint(tmp_path / "pickled").tensors, dict(found.tensors))


@pytest.mark.torch
@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("class_names", [False, True])
def test_what_is_written_is_what_timm_takes(tmp_path, name, options, class_names):
    timm, torch = load_timm()
    torch.manual_seed(1)
    source = timm.create_model(name, **options)
    tensors = {key: value.numpy() for key, value in source.state_dict().items()}
    num_classes, in_chans = source.num_classes, options.get("in_chans", 3)
    names = tuple(f"class {index}" for index in range(num_classes)) if class_names else None
    preprocessing = {**PREPROCESSING, "mean": PREPROCESSING["mean"][:in_chans], "std": PREPROCESSING["std"][:in_chans]}
    model = create_model(name, **options, **preprocessing)
    write_folder(tmp_path / "model", model, tensors, class_names=names)
    spec = model.input_spec
    theirs = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True)
    assert_same({key: value.numpy() for key, value in theirs.state_dict().items()}, tensors)
    config = theirs.pretrained_cfg
    assert config["architecture"] == name
    assert tuple(config["input_size"]) == (in_chans, *spec.size)
    assert tuple(config["mean"]) == spec.mean
    assert tuple(config["std"]) == spec.std
    assert (config["crop_pct"], config["crop_mode"], config["interpolation"]) == (0.9, "squash", "bilinear")
    assert (config["num_classes"], theirs.num_classes) == (num_classes, num_classes)
    assert (config["classifier"], config["first_conv"]) == ("head.fc", "stem.conv1")
    assert config.get("label_names") == (None if names is None else list(names))
    prepared = timm.data.resolve_data_config({}, model=theirs)
    assert tuple(prepared["input_size"]) == (in_chans, *spec.size)
    again = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True, num_classes=2)
    np.testing.assert_array_equal(again.stem.conv1.weight.detach(), tensors["stem.conv1.weight"])
