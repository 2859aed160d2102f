"""The library's functions from_torch, to_torch and load_pretrained."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import mambaout_jax as mo
from mambaout_jax.models import ModelError
from mambaout_jax.weights import NewHeadWarning, WeightsError
from tests.weights import pytorch


@pytest.fixture(scope="module")
def given():
    model = pytorch.small_model()
    variables = pytorch.draw(model)
    return model, variables, mo.to_torch(model, variables)


@pytest.fixture
def file(given, tmp_path):
    save_file(given[2], tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


@pytest.mark.run
def test_import_alone_loads_nothing_heavy():
    code = """
import sys
import mambaout_jax
import mambaout_jax.weights.errors
print(sorted({"torch", "timm", "safetensors", "huggingface_hub"} & set(sys.modules)))
"""
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60).stdout
    assert shown == "[]\n"
    code = (
        'import sys, mambaout_jax; print(sorted({"jax", "numpy", "flax", "torch", "safetensors"} & set(sys.modules)))'
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60).stdout
    assert shown == "[]\n"


@pytest.fixture(scope="module")
def variant():
    model = mo.create_model("test_mambaout", num_classes=5)
    return model, pytorch.draw(model)


@pytest.fixture
def variant_file(variant, tmp_path):
    save_file(mo.to_torch(*variant), tmp_path / "variant.safetensors")
    return tmp_path / "variant.safetensors"


@pytest.mark.run
def test_safetensors_are_read_without_pytorch(variant_file):
    code = f"""
import sys
sys.modules["torch"] = sys.modules["timm"] = None
import mambaout_jax as mo
model, variables = mo.load_pretrained({str(variant_file)!r})
assert len(mo.to_torch(model, variables)) > 20
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def folder(given, tmp_path):
    save_file(given[2], tmp_path / "model.safetensors")
    about = {
        "architecture": "mambaout_femto",
        "num_classes": 5,
        "model_args": {"depths": [1, 2], "dims": [16, 24]},
        "label_names": list("abcde"),
        "pretrained_cfg": {
            "input_size": [3, 64, 96],
            "crop_pct": 0.9,
            "crop_mode": "squash",
            "interpolation": "bilinear",
            "mean": [0.5, 0.4, 0.3],
            "std": [0.1, 0.2, 0.3],
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(about))
    return tmp_path


@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["text", "path"])
def test_a_file_and_its_state_dict_are_the_same_weights(given, file, kind):
    model, variables, _ = given
    pytorch.assert_equal_trees(mo.from_torch(model, kind(file)), variables)


def test_the_shapes_of_a_file_name_its_model(variant, variant_file):
    model, variables = variant
    loaded, read = mo.load_pretrained(variant_file)
    assert (loaded.name, loaded.num_classes) == ("test_mambaout", 5)
    assert loaded.options == model.options
    pytorch.assert_equal_trees(read, variables)


def test_options_change_the_model_and_not_the_weights(variant, variant_file):
    options = {"img_size": (64, 96), "dtype": "bfloat16", "drop_path_rate": 0.25, "act_layer": "relu"}
    loaded, read = mo.load_pretrained(variant_file, **options)
    assert loaded.input_spec.size == (64, 96)
    assert all(loaded.options[key] == value for key, value in options.items() if key != "img_size")
    pytorch.assert_equal_trees(read, variant[1])
    assert {leaf.dtype.name for leaf in mo.to_torch(loaded, read).values()} == {"float32"}


def test_a_folder_has_model_and_preparation(given, folder):
    model, variables, _ = given
    loaded, read = mo.load_pretrained(folder)
    assert loaded.options == model.options
    assert loaded.input_spec == ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3), (64, 96), 0.9, "squash", "bilinear")
    pytorch.assert_equal_trees(read, variables)
    pytorch.assert_equal_trees(mo.from_torch(model, folder), variables)
    small, _ = mo.load_pretrained(folder, img_size=32, crop_pct=1.0)
    assert small.input_spec == loaded.input_spec._replace(size=(32, 32), crop_pct=1.0)


def test_a_folder_whose_config_is_of_another_model_is_refused(folder):
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**about, "architecture": "mambaout_kobe", "model_args": {}}))
    with pytest.raises(
        WeightsError, match=r": the weights do not fit mambaout_kobe: head.fc.weight has shape .*; and \d+ more$"
    ):
        mo.load_pretrained(folder)


def test_a_fault_in_a_file_begins_with_its_name(given, tmp_path):
    model, _, state_dict = given
    path = tmp_path / "short.safetensors"
    save_file({key: value for key, value in state_dict.items() if key != "stem.norm2.bias"}, path)
    with pytest.raises(
        WeightsError, match=r"short\.safetensors: the weights do not fit .*: stem\.norm2\.bias is missing$"
    ):
        mo.from_torch(model, path)
    with pytest.raises(WeightsError, match=r"short\.safetensors: no variant has exactly these tensors; the closest, "):
        mo.load_pretrained(path)
    save_file({"stem.0.weight": np.zeros((4, 3, 4, 4), np.float32)}, path)
    for load in (lambda: mo.from_torch(model, path), lambda: mo.load_pretrained(path)):
        with pytest.raises(WeightsError, match=r"short\.safetensors: the keys .* match no known model"):
            load()


def test_an_unknown_option_is_refused_by_the_model(variant_file):
    with pytest.raises(ModelError, match="'image_size' is not a known option of test_mambaout"):
        mo.load_pretrained(variant_file, image_size=3)
    with pytest.raises(ModelError, match="img_size is 16"):
        mo.load_pretrained(variant_file, img_size=16)


def with_head(variables, model, fresh):
    """Return variables with the last layer of others."""

    def choose(path, leaf, new):
        return new if tuple(entry.key for entry in path)[1:-1] == model.classifier else leaf

    return jax.tree_util.tree_map_with_path(choose, variables, fresh)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [None, 3])
def test_another_number_of_classes_is_a_new_last_layer_with_a_warning(variant, variant_file, seed):
    key = None if seed is None else jax.random.key(seed)
    with pytest.warns(NewHeadWarning, match=r"variant\.safetensors: .* 7 classes.* 5"):
        model, variables = mo.load_pretrained(variant_file, num_classes=7, key=key)
    assert model.num_classes == 7
    fresh = model.init(jax.random.key(0) if key is None else key)
    pytorch.assert_equal_trees(variables, with_head(variant[1], model, fresh))
    assert model.apply(variables, jnp.zeros((1, 32, 32, 3))).shape == (1, 7)


@pytest.mark.slow
def test_the_number_of_classes_of_the_weights_keeps_their_last_layer(variant, variant_file):
    _, variables = mo.load_pretrained(variant_file, num_classes=5)
    pytorch.assert_equal_trees(variables, variant[1])


@pytest.mark.slow
def test_weights_without_a_last_layer_are_loaded_with_a_new_one_or_refused(given, folder):
    _, variables, state_dict = given
    save_file(
        {key: value for key, value in state_dict.items() if not key.startswith("head.fc.")},
        folder / "model.safetensors",
    )
    about = json.loads((folder / "config.json").read_text())
    del about["label_names"]
    (folder / "config.json").write_text(json.dumps({**about, "num_classes": 0}))
    with pytest.raises(WeightsError, match=r"have no last layer .* num_classes"):
        mo.load_pretrained(folder)
    with pytest.warns(NewHeadWarning, match="weights have none"):
        model, loaded = mo.load_pretrained(folder, num_classes=3)
    fresh = model.init(jax.random.key(0))
    pytorch.assert_equal_trees(loaded, with_head(variables, model, fresh))


@pytest.mark.slow
@pytest.mark.parametrize("in_chans", [1, 4])
def test_mean_and_std_of_other_channels_are_not_those_of_the_weights(folder, in_chans):
    model, _ = mo.load_pretrained(folder, in_chans=in_chans)
    assert (model.input_spec.mean, model.input_spec.std) == ((0.5,) * in_chans, (0.5,) * in_chans)
    given, _ = mo.load_pretrained(folder, in_chans=in_chans, mean=(0.25,) * in_chans, std=(0.5,) * in_chans)
    assert given.input_spec.mean == (0.25,) * in_chans
    same, _ = mo.load_pretrained(folder, in_chans=3)
    assert same.input_spec.mean == (0.5, 0.4, 0.3)
