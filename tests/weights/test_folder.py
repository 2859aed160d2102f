"""Folders in timm's format: round trips, and errors in one sentence."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from mambaout_jax.machine import MachineError
from mambaout_jax.models import create_model
from mambaout_jax.weights.checkpoint import read_checkpoint
from mambaout_jax.weights.errors import WeightsError
from mambaout_jax.weights.files import write_file
from mambaout_jax.weights.folder import write_folder
from tests.weights.test_files import assert_same

TENSORS = {"stem.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4)}
NAMES = ("ant", "bee", "cicada")
ARGS = {"depths": (1, 2), "dims": (16, 24)}
PREPROCESSING = {
    "img_size": (96, 128),
    "mean": (0.1, 0.2, 0.3),
    "std": (0.4, 0.5, 0.6),
    "crop_pct": 0.9,
    "crop_mode": "squash",
    "interpolation": "bilinear",
}
MODEL = create_model("mambaout_femto", num_classes=3, **ARGS, **PREPROCESSING)
# As timm's hub has them: of today, and flat as it was.
INNER = {
    "url": "",
    "num_classes": 3,
    "input_size": [3, 96, 128],
    "test_input_size": [3, 288, 288],
    "pool_size": [7, 7],
    "crop_pct": 0.9,
    "interpolation": "bilinear",
    "crop_mode": "squash",
    "mean": [0.1, 0.2, 0.3],
    "std": [0.4, 0.5, 0.6],
    "first_conv": "stem.conv1",
    "license": "apache-2.0",
}
CONFIG = {
    "architecture": "mambaout_femto.in1k",
    "num_classes": 3,
    "num_features": 24,
    "global_pool": "avg",
    "label_names": list(NAMES),
    "model_args": {"depths": [1, 2], "dims": [16, 24], "ls_init_value": None, "drop_path_rate": 0.1},
    "pretrained_cfg": INNER,
}
FLAT = {"architecture": "mambaout_femto", "num_features": 24, "labels": list(NAMES), **INNER}


def make(folder, config, name="model.safetensors"):
    folder.mkdir(exist_ok=True)
    text = config if isinstance(config, str | bytes) else json.dumps(config)
    (folder / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    write_file(folder / name, TENSORS, force=True)
    return folder


def assert_refused(folder, words):
    with pytest.raises(WeightsError, match=words) as refusal:
        read_checkpoint(folder)
    assert str(refusal.value).startswith(str(folder))
    assert len(str(refusal.value).splitlines()) == 1
    assert len(str(refusal.value)) < 600


def test_what_is_written_is_read(tmp_path):
    write_folder(tmp_path / "model", MODEL, TENSORS, class_names=NAMES)
    assert sorted(os.listdir(tmp_path / "model")) == ["config.json", "model.safetensors"]
    assert os.listdir(tmp_path) == ["model"]
    found = read_checkpoint(tmp_path / "model")
    assert_same(found.tensors, TENSORS)
    assert found.config.architecture == "mambaout_femto"
    assert found.config.options == {**ARGS, "num_classes": 3, "in_chans": 3}
    assert found.config.class_names == NAMES
    assert found.config.preprocessing == PREPROCESSING


@pytest.mark.parametrize(
    ("config", "options"), [(CONFIG, {**ARGS, "ls_init_value": None, "drop_path_rate": 0.1}), (FLAT, {})]
)
def test_both_forms_of_config_are_read(tmp_path, config, options):
    found = read_checkpoint(make(tmp_path, config)).config
    assert found.architecture == "mambaout_femto"
    assert found.options == {**options, "num_classes": 3, "in_chans": 3}
    assert found.class_names == NAMES
    assert found.preprocessing == PREPROCESSING


def test_what_a_config_does_not_say_is_the_variants_own(tmp_path):
    found = read_checkpoint(make(tmp_path, {"architecture": "test_mambaout"})).config
    assert found == ("test_mambaout", {}, {}, None, None, None, None, None, {})
    assert read_checkpoint(make(tmp_path, {**CONFIG, "label_names": None})).config.class_names is None


def test_labels_may_be_an_object_of_indices(tmp_path):
    labels = {str(index): name for index, name in reversed(list(enumerate(NAMES)))}
    assert read_checkpoint(make(tmp_path, {**CONFIG, "label_names": labels})).config.class_names == NAMES


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.pth", "model.pth"])
def test_other_names_of_weights_are_taken_and_safetensors_first(tmp_path, name):
    make(tmp_path, CONFIG).joinpath("model.safetensors").rename(tmp_path / name)
    assert_same(read_checkpoint(tmp_path).tensors, TENSORS)
    write_file(tmp_path / "model.safetensors", {"other": np.ones(1, np.float32)})
    assert list(read_checkpoint(tmp_path).tensors) == ["other"]


BAD_TEXT = [
    ("", "is not valid JSON"),
    ("{", "is not valid JSON"),
    (b"\xff\xfe{}", "is not valid JSON"),
    ("[" * 100_000, "is nested too deeply"),
    ('{"architecture": ' + "9" * 5000 + "}", "is not valid JSON"),
    ("[1]", r"contains \[1\]; expected a JSON object"),
    ("null", "contains None; expected a JSON object"),
    ('{"architecture": "mambaout_tiny", "architecture": "mambaout_base"}', "'architecture' occurs twice"),
    ("{}", "has no architecture"),
]


@pytest.mark.parametrize(("text", "words"), BAD_TEXT, ids=[words for _, words in BAD_TEXT])
def test_a_text_that_is_no_config_is_refused(tmp_path, text, words):
    assert_refused(make(tmp_path, text), words)


def changed(key, value):
    return {**CONFIG, "pretrained_cfg": {**INNER, key: value}}


def with_args(**model_args):
    return {**CONFIG, "model_args": model_args}


NAN = float("nan")
BAD_VALUES = [
    ({**CONFIG, "architecture": 3}, "architecture 3; expected a string"),
    (
        {**CONFIG, "architecture": "convnext_tiny"},
        "architecture 'convnext_tiny', which is not a known model; .*; python -m mambaout_jax models lists all",
    ),
    ({**CONFIG, "architecture": "mambaout_tinny.in1k"}, "the nearest is 'mambaout_tiny'"),
    ({**CONFIG, "architecture": "x\n" * 9999}, "which is not a known model"),
    ({**CONFIG, "pretrained_cfg": []}, r"pretrained_cfg \[\]; expected a JSON object"),
    ({**CONFIG, "num_classes": "3"}, "num_classes '3'; expected an integer of at least 0"),
    ({**CONFIG, "num_classes": -1}, "num_classes -1; expected an integer of at least 0"),
    ({**CONFIG, "num_classes": True}, "num_classes True; expected an integer of at least 0"),
    ({**CONFIG, "num_classes": False}, "num_classes False; expected an integer of at least 0"),
    ({**CONFIG, "global_pool": "max"}, "global_pool 'max'; expected 'avg'"),
    (changed("crop_pct", 1e-9), "crop_pct 1e-09; expected a number from 0.1 to 1"),
    (changed("crop_pct", 5), "crop_pct 5; expected a number from 0.1 to 1"),
    ({**CONFIG, "label_names": ["a", "b\n", "c"]}, "a list of strings"),
    ({**CONFIG, "model_args": [1]}, r"model_args \[1\]; expected a JSON object"),
    (with_args(num_classes=4), "has num_classes 3 and, in model_args, 4; expected equal numbers"),
    (with_args(depth=[1]), "has 'depth', not an option of mambaout_femto; expected one of act_layer, conv_ratio"),
    (with_args(img_size=64), "has 'img_size', not an option"),
    (with_args(depths=3), "depths is 3; expected a non-empty tuple of integers"),
    (with_args(depths=[1, 0]), r"depths is \[1, 0\]; expected a non-empty tuple of integers"),
    (with_args(dims=[1.5]), r"dims is \[1.5\]; expected a non-empty tuple"),
    (with_args(conv_ratio="a"), "conv_ratio is 'a'; expected a number"),
    (with_args(conv_ratio=NAN), "conv_ratio is nan; expected a number"),
    (with_args(stem_mid_norm=1), "stem_mid_norm is 1; expected True or False"),
    (with_args(act_layer=None), "act_layer is unset; expected 'gelu'"),
    (with_args(ls_init_value="x"), "ls_init_value is 'x'; expected a number"),
    (with_args(global_pool="catavgmax"), "global_pool 'catavgmax'; expected 'avg'"),
    (changed("input_size", "224"), r"input_size '224'; expected \[channels, height, width\]"),
    (changed("input_size", [224, 224]), r"input_size \[224, 224\]; expected \[channels"),
    (changed("mean", [0.1, 0.2]), r"mean \[0.1, 0.2\]; expected a list of 3 numbers, one per channel"),
    (changed("mean", [NAN] * 3), r"mean \[nan, nan, nan\]; expected a list of 3 numbers"),
    (changed("std", [0.1, 0, 0.3]), r"std \[0.1, 0, 0.3\]; expected a list of 3 positive numbers, one per channel"),
    (changed("crop_pct", "a"), "crop_pct 'a'; expected a number from 0.1 to 1"),
    (changed("crop_pct", 10**400), "crop_pct 1000.*; expected a number from 0.1 to 1"),
    (changed("crop_pct", -float("inf")), "crop_pct -inf; expected a number from 0.1 to 1"),
    (changed("crop_mode", 1), "crop_mode 1; expected a string"),
    (changed("interpolation", {}), "interpolation {}; expected a string"),
    ({**CONFIG, "label_names": ["ant", "bee"]}, "2 label_names where num_classes is 3"),
    ({**CONFIG, "label_names": "ant"}, "label_names 'ant'; expected a list of strings"),
    ({**CONFIG, "label_names": ["ant", 2, "bee"]}, "a list of strings"),
    ({**CONFIG, "label_names": {"0": "ant", "2": "bee"}}, "a list of strings"),
]


@pytest.mark.parametrize(("config", "words"), BAD_VALUES, ids=[words for _, words in BAD_VALUES])
def test_a_value_that_does_not_fit_is_named(tmp_path, config, words):
    assert_refused(make(tmp_path, config), words)


def test_a_folder_that_lacks_something_is_named(tmp_path):
    assert_refused(tmp_path, "has no file config.json; expected a folder in timm's format")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert_refused(tmp_path, r"has no weights; expected one of model.safetensors, pytorch_model.bin, .* in it")
    (tmp_path / "model.safetensors").mkdir()
    assert_refused(tmp_path, "is not a file")
    (tmp_path / "config.json").unlink()
    os.mkfifo(tmp_path / "config.json")
    assert_refused(tmp_path, "has no file config.json")


def test_what_exists_is_replaced_only_on_demand_and_only_if_it_is_a_models(tmp_path):
    place = make(tmp_path / "model", FLAT)
    with pytest.raises(WeightsError, match=f"{place} exists; .*--force"):
        write_folder(place, MODEL, TENSORS)
    write_folder(place, MODEL, TENSORS, class_names=NAMES, force=True)
    assert "label_names" in json.loads((place / "config.json").read_text())
    (place / "notes.txt").write_text("precious")
    with pytest.raises(WeightsError, match=r"contains 'notes.txt', so --force does not replace it"):
        write_folder(place, MODEL, TENSORS, force=True)
    assert (place / "notes.txt").read_text() == "precious"
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("inside", ["config.json", "model.safetensors", "model.pth/", "sub/", ".git/", "link"])
def test_a_folder_of_another_kind_is_never_replaced(tmp_path, inside):
    place = tmp_path / "model"
    place.mkdir()
    if inside.endswith("/"):
        make(place, CONFIG)
        (place / inside).mkdir()
    elif inside == "link":
        (place / "config.json").write_text("{}")
        (place / "model.safetensors").symlink_to("/dev/null")
    else:
        (place / inside).write_text("precious")
    before = sorted(os.listdir(place))
    with pytest.raises(WeightsError, match="so --force does not replace it"):
        write_folder(place, MODEL, TENSORS, force=True)
    assert sorted(os.listdir(place)) == before
    assert os.listdir(tmp_path) == ["model"]


def test_an_empty_folder_is_filled_and_a_file_never_replaced(tmp_path):
    (tmp_path / "empty").mkdir()
    write_folder(tmp_path / "empty", MODEL, TENSORS)
    assert_same(read_checkpoint(tmp_path / "empty").tensors, TENSORS)
    (tmp_path / "file").write_text("precious")
    with pytest.raises(WeightsError, match="exists and is not a folder"):
        write_folder(tmp_path / "file", MODEL, TENSORS, force=True)
    assert (tmp_path / "file").read_text() == "precious"
    with pytest.raises(WeightsError, match=r"cannot be written \(No such file or directory\)"):
        write_folder(tmp_path / "none" / "model", MODEL, TENSORS)
    assert sorted(os.listdir(tmp_path)) == ["empty", "file"]


def test_a_new_folder_has_the_permissions_of_any_new_folder(tmp_path):
    (tmp_path / "plain").mkdir()
    write_folder(tmp_path / "model", MODEL, TENSORS, class_names=NAMES)
    assert (tmp_path / "model").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize(
    "call", ["mambaout_jax.weights.folder.sync", "mambaout_jax.weights.folder.write_tensors", "last"]
)
def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path, monkeypatch, error, call):
    place = make(tmp_path / "model", FLAT)
    rename = Path.rename

    def stop(path, *to):
        if call == "last" and (path == place or path.name.endswith(".old")):
            return rename(path, *to)
        raise error

    monkeypatch.setattr(*((Path, "rename") if call == "last" else (call,)), stop)
    with pytest.raises(MachineError if isinstance(error, OSError) else error):
        write_folder(place, MODEL, TENSORS, force=True)
    assert json.loads((place / "config.json").read_text()) == FLAT
    assert_same(read_checkpoint(place).tensors, TENSORS)
    assert os.listdir(tmp_path) == ["model"]


def test_what_came_meanwhile_is_not_replaced(tmp_path):
    place = tmp_path / "model"
    with pytest.raises(WeightsError, match=r"cannot be written [(]Directory not empty"):
        write_folder(place, MODEL, TENSORS, check=lambda draft: make(place, CONFIG))
    assert json.loads((place / "config.json").read_text()) == CONFIG
    assert os.listdir(tmp_path) == ["model"]
