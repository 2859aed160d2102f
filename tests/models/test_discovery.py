"""What a user finds out about the package and its models from Python, and from its errors."""

import copy
import pickle
import pydoc
import rlcompleter
import tomllib
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mambaout_jax as mo
from mambaout_jax import plugins
from mambaout_jax.models import MambaBlock, ModelError, variant_options
from mambaout_jax.models.macs import count_model_macs
from tests.marks import slow_but
from tests.models import golden
from tests.toy import model as toy

SMALL = golden.small_models()
FIRST = next(iter(SMALL))
every_small_model = pytest.mark.parametrize("name", SMALL)
PYPROJECT = Path(__file__).parent.parent.parent / "pyproject.toml"


def small(name=FIRST, **options):
    base, own = SMALL[name]
    return mo.create_model(base, **{"img_size": 32, "num_classes": 5, **own, **options})


def images(batch=2, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(0).integers(0, 255, (batch, 32, 32, 3)), dtype)


def test_package_lists_its_public_names_alone():
    assert set(dir(mo)) == {*mo.__all__, "__version__"}
    assert all(getattr(mo, name) is not None for name in dir(mo))
    completer = rlcompleter.Completer({"mo": mo})
    assert completer.complete("mo.create", 0).startswith("mo.create_model")
    text = pydoc.render_doc(mo, renderer=pydoc.plaintext)
    assert all(name in text for name in dir(mo) if name.isidentifier() and not name.startswith("_"))


def test_version_is_that_of_the_checkout_or_else_of_the_installed_package(tmp_path, monkeypatch):
    assert mo.__version__ == tomllib.loads(PYPROJECT.read_text())["project"]["version"]
    monkeypatch.setattr("mambaout_jax.version.__file__", str(tmp_path / "mambaout_jax" / "version.py"))
    monkeypatch.setattr(metadata, "version", {"mambaout_jax": "9.8.7"}.get)
    assert mo.__version__ == "9.8.7"
    # Another project left its own file in site-packages.
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "other"\nversion = "1.0"\n')
    assert mo.__version__ == "9.8.7"
    (tmp_path / "pyproject.toml").write_text("[tool.ruff]\n")
    assert mo.__version__ == "9.8.7"


@pytest.mark.parametrize("name", ["data", "errors", "models", "ops", "tasks", "weights"])
def test_packages_are_attributes_without_an_import(name, monkeypatch):
    monkeypatch.delattr(mo, name, raising=False)
    assert getattr(mo, name).__name__ == f"mambaout_jax.{name}"


def test_patterns_select_models():
    assert mo.list_models("vit*") == [name for name in mo.list_models() if name.startswith("vit")]
    assert mo.list_models("*") == mo.list_models(None) == mo.list_models()
    assert mo.list_models("no*such") == []


@every_small_model
def test_repr_has_name_changes_size_and_parameters(name):
    model = small(name)
    shown = repr(model)
    assert f"{model.num_params:,}" in shown
    assert "32x32x3" in shown
    own = variant_options(model.name)
    assert all((f"{key}={value!r}" in shown) == (own[key] != value) for key, value in model.options.items())
    assert shown.startswith(f"<{type(model).__name__} {model.name}: ")


@pytest.mark.parametrize("name", slow_but(["mambaout-conv", "vim-v2", "vit-class_token"], SMALL))
@pytest.mark.parametrize("num_classes", [5, 0])
def test_summary_adds_up_to_the_model(name, num_classes):
    model = small(name, num_classes=num_classes)
    summary = model.summary()
    assert sum(row.params for row in summary.rows) == summary.params == model.num_params
    assert sum(row.macs for row in summary.rows) == summary.macs == count_model_macs(model)
    maps = [row for row in summary.rows if row.output.startswith("features")]
    assert [row.shape[-1] for row in maps] == [info.channels for info in model.feature_info]
    assert [row.output for row in summary.rows[len(maps) :]] == ["embedding", "logits"][: 2 if num_classes else 1]
    if num_classes:
        width = summary.rows[-2].shape[-1]
        assert summary.rows[-1] == ("logits", (5,), 5 * width + 5, 5 * width)
    lines = str(summary).splitlines()
    assert len({len(line) for line in lines[2:]}) == 1
    assert lines[-1].split() == ["total", f"{model.num_params:,}", f"{summary.macs:,}"]


@every_small_model
def test_a_model_survives_pickling_and_copies_are_the_model(name):
    model = small(name, mean=(0.1, 0.2, 0.3), interpolation="bilinear")
    loaded = pickle.loads(pickle.dumps(model))
    assert (loaded.name, loaded.options, loaded.input_spec) == (model.name, model.options, model.input_spec)
    assert loaded.family is model.family
    assert copy.deepcopy(model) is copy.copy(model) is model


def test_a_pickled_model_of_a_plugin_loads_the_plugin(monkeypatch):
    monkeypatch.setattr(plugins, "_loaded", {})
    plugins.load(["tests.toy.plugin"])
    pickled = pickle.dumps(mo.create_model("spotter_small"))
    monkeypatch.setattr(plugins, "_loaded", {})
    assert "spotter_small" not in mo.list_models()
    assert pickle.loads(pickled).family is toy.FAMILY


@pytest.mark.parametrize("argument", ["pretrained", "checkpoint_path"])
def test_arguments_of_timm_are_answered_with_ours(argument):
    with pytest.raises(ModelError, match="load_pretrained"):
        mo.create_model("mambaout_tiny", **{argument: True})


@pytest.mark.parametrize(("option", "near"), [("drop_path", "drop_path_rate"), ("num_class", "num_classes")])
def test_an_unknown_option_is_answered_with_the_nearest(option, near):
    with pytest.raises(ModelError, match=f"did you mean '{near}'"):
        small(**{option: 1})


def test_integers_of_numpy_are_plain_integers(no_type_checks):
    model = mo.create_model(
        "mambaout_femto", num_classes=np.int64(7), depths=(np.int32(1),), dims=[np.int64(8)], img_size=np.int64(64)
    )
    plain = mo.create_model("mambaout_femto", num_classes=7, depths=(1,), dims=(8,), img_size=64)
    assert repr(model) == repr(plain)
    assert {type(side) for side in (model.num_classes, *model.options["dims"], *model.input_spec.size)} == {int}
    with pytest.raises(ModelError, match=r"num_classes is .*; expected an integer"):
        mo.create_model("mambaout_femto", num_classes=np.True_)


@pytest.mark.parametrize("dtype", ["bfloat16", jnp.bfloat16, jnp.dtype("bfloat16")])
def test_a_dtype_may_be_a_name_or_an_object(dtype):
    assert small(dtype=dtype).options["dtype"] == "bfloat16"
    assert MambaBlock(16, dtype=dtype).in_proj.dtype == jnp.bfloat16
    for wrong in (jnp.float16, np.float64, "half", 3):
        with pytest.raises(ModelError, match=r"dtype is .*'float32' or 'bfloat16'"):
            small(dtype=wrong)


@pytest.mark.slow
def test_images_that_are_not_normalized_are_refused(no_type_checks):
    model = small()
    variables = model.init(jax.random.key(0))
    for call in (model.apply, model.apply_train, model.features, model.embed):
        with pytest.raises(ModelError, match=r"images are uint8.*model\.input_spec\.normalize"):
            call(variables, images(dtype=np.uint8))
    with pytest.raises(ModelError, match="images have type list"):
        model.apply(variables, images().tolist())
    assert jax.eval_shape(model.apply, variables, model.input_spec.normalize(images(dtype=np.uint8))).shape == (2, 5)


def changed(tree, path, value):
    """Return nested dicts with another value at a path; None to remove it."""
    first, *rest = path
    if rest:
        return {**tree, first: changed(tree[first], rest, value)}
    return {key: given for key, given in {**tree, first: value}.items() if given is not None}


@pytest.mark.slow
def test_another_structure_of_variables_is_one_sentence(no_type_checks):
    model = small()
    variables = model.init(jax.random.key(0))
    layer = ("params", *model.classifier)
    wrong = {
        r"variables has type list": [variables],
        r"variables lacks the key 'params'": {"batch_stats": {}},
        r"variables lacks the key.* 'params'|has the unknown key": variables["params"],
        r"unknown key 'opt_state'": {**variables, "opt_state": {}},
        r"lacks the key 'weight'": changed(variables, (*layer, "weight"), None),
        r"has the unknown key 'kernel'": changed(variables, (*layer, "kernel"), jnp.zeros(3)),
        r"has shape \(7,\), not \(5,\)": changed(variables, (*layer, "bias"), jnp.zeros(7)),
        r"has type (NoneType|float)": changed(variables, (*layer, "bias"), 0.0),
        r"\['batch_stats'\] has the unknown key 'norm'": {**variables, "batch_stats": {"norm": jnp.zeros(3)}},
    }
    for words, given in wrong.items():
        for call in (model.apply, model.apply_train, model.to_nnx):
            with pytest.raises(ModelError, match=words) as caught:
                call(given, *([] if call == model.to_nnx else [images()]))
            assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_batch_statistics_may_be_absent_where_a_model_has_none(monkeypatch):
    model = small()
    params = model.init(jax.random.key(0))["params"]
    assert model.shapes["batch_stats"] == {}
    assert jax.eval_shape(model.apply_train, {"params": params}, images())[1] == {}
    monkeypatch.setattr(plugins, "provided", lambda attribute: (toy.FAMILY,))
    spotter = mo.create_model("spotter_small")
    with pytest.raises(ModelError, match="variables lacks the key 'batch_stats'"):
        spotter.apply({"params": spotter.init(jax.random.key(0))["params"]}, images())
    with pytest.raises(ModelError, match="'spotter' have no embedding"):
        spotter.embed(spotter.init(jax.random.key(0)), images())
