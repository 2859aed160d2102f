"""Families are a list: built-in ones and those of plugins, each name once."""

import sys
from importlib.metadata import EntryPoint

import jax
import pytest

import mambaout_jax as mo
from mambaout_jax import plugins
from mambaout_jax.models import Family, ModelError, Variant, families, find_family
from mambaout_jax.models.registry import BUILT_IN
from mambaout_jax.plugins import PluginError
from mambaout_jax.weights import WeightsError, resolve_model
from tests.weights import configurations, pytorch

TOY = '''
import jax.numpy as jnp
from flax import nnx
from mambaout_jax.checks import ConfigKey
from mambaout_jax.models.family import Family, Variant
from mambaout_jax.models.key_format import KeyFormat, Rule
from mambaout_jax.models.layers.linear import Linear
from mambaout_jax.models.layers.parameters import normal, parameter
from mambaout_jax.models.options import COMMON


class Mixer(nnx.Module):
    def __init__(self):
        self.A_log = parameter((4, 3), normal)
        self.conv1d = nnx.Module()
        self.conv1d.weight = parameter((2, 1, 4), normal)


class Toy(nnx.Module):
    """A parameter of the model itself, a kernel of one axis, a raw matrix."""

    first_conv, classifier = ("stem",), ("head",)
    feature_channels = feature_strides = (1,)

    def __init__(self, *, num_classes, in_chans, depth, drop_rate, dtype):
        self.cls_token = parameter((1, 1, 4), normal)
        self.stem = Linear(in_chans, 4, dtype=jnp.dtype(dtype))
        self.mixers = nnx.List([Mixer() for _ in range(depth)])
        self.head = Linear(4, num_classes, dtype=jnp.dtype(dtype))

    def logits(self, images, key):
        return self.head(self.stem(images).mean((1, 2)))


TOYS = KeyFormat(
    "toys",
    (
        Rule("cls_token", "cls_token"),
        Rule("stem.*", "stem.*"),
        Rule("layers.#.mixer.A", "mixers.#.A_log"),
        Rule("layers.#.mixer.conv.*", "mixers.#.conv1d.*"),
        Rule("classifier.*", "head.*"),
    ),
)
OPTIONS = {**COMMON, "num_classes": ConfigKey(int, "1..", 5, "outputs"), "depth": ConfigKey(int, "1..9", 2, "layers")}
FAMILIES = (Family("toy", Toy, OPTIONS, {"toy_small": Variant({}), "toy_deep": Variant({"depth": 3})}, (TOYS,)),)
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The name of a module that is on the path and loaded by nobody; plugins are unloaded after the test."""
    (tmp_path / "toy_plugin.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plugins, "_loaded", {})
    plugins._entry_points.cache_clear()
    yield "toy_plugin"
    sys.modules.pop("toy_plugin", None)
    plugins._entry_points.cache_clear()


def test_built_in_families_come_first_and_own_all_models():
    assert families() == BUILT_IN
    assert sorted(name for family in families() for name in family.variants) == mo.list_models()
    assert all(find_family(name) is mo.create_model(name).family for name in ("mamba_femto", "deit_tiny_patch16_224"))


@pytest.mark.slow
def test_a_plugin_adds_its_family_with_all_that_a_family_has(toy):
    plugins.load([toy])
    model = mo.create_model("toy_small", num_classes=7)
    assert model.family.name == "toy"
    assert {"toy_deep", "toy_small"} <= set(mo.list_models())
    variables = model.init(jax.random.key(0))
    assert model.apply(variables, jax.numpy.zeros((2, 32, 32, 3))).shape == (2, 7)
    state_dict = mo.to_torch(model, variables)
    assert pytorch.shapes_of(state_dict) == {
        "cls_token": (1, 1, 4),
        "stem.weight": (4, 3),
        "stem.bias": (4,),
        **{f"layers.{index}.mixer.A": (4, 3) for index in range(2)},
        **{f"layers.{index}.mixer.conv.weight": (4, 1, 2) for index in range(2)},
        "classifier.weight": (7, 4),
        "classifier.bias": (7,),
    }
    pytorch.assert_equal_trees(mo.from_torch(model, state_dict), variables)
    for name in ("toy_small", "toy_deep"):
        found = resolve_model(pytorch.checkpoint_of(configurations.shapes(mo.create_model(name, num_classes=7))))
        assert found[1:] == (name, {"num_classes": 7}, ())
    with pytest.raises(WeightsError, match="belong to a Toy; expected a MambaOut"):
        mo.from_torch(pytorch.small_model(), state_dict)


def test_a_method_that_another_family_has_is_refused_by_name():
    model = mo.create_model("mambaout_femto")
    with pytest.raises(ModelError, match=r"mambaout_femto has no method 'propose', .*choose a model for this task"):
        model.call(model.shapes, "propose")


def test_a_plugin_is_imported_once_and_its_family_stays_one_object(toy):
    plugins.load([toy])
    first = find_family("toy_small")
    plugins.load([toy, toy])
    assert find_family("toy_small") is first


def test_an_entry_point_and_a_config_may_name_the_same_plugin(toy, monkeypatch):
    entry = EntryPoint("toys", toy, plugins.ENTRY_POINTS)
    monkeypatch.setattr(plugins.metadata, "entry_points", lambda group: [entry] if group == entry.group else [])
    assert "toy_small" in mo.list_models()
    plugins.load([toy])
    assert mo.list_models().count("toy_small") == 1


def test_a_broken_entry_point_is_named(toy, monkeypatch):
    entry = EntryPoint("toys", "no_such_module", plugins.ENTRY_POINTS)
    monkeypatch.setattr(plugins.metadata, "entry_points", lambda group: [entry])
    with pytest.raises(PluginError, match=r"the plugin 'toys' \(no_such_module\) cannot be loaded \(ModuleNotFound"):
        mo.list_models()


def test_a_module_that_cannot_be_imported_is_one_sentence(toy, tmp_path):
    with pytest.raises(PluginError, match=r"plugin 'no\.such\.module' cannot be imported"):
        plugins.load(["no.such.module"])
    (tmp_path / "broken_plugin.py").write_text("1 / 0")
    with pytest.raises(PluginError, match=r"'broken_plugin' cannot be imported \(ZeroDivisionError"):
        plugins.load(["broken_plugin"])


@pytest.mark.parametrize("code", ["import sys\nsys.exit(0)", "raise RuntimeError('two\\nlines')"])
def test_a_module_that_ends_the_program_or_says_more_is_one_line(toy, tmp_path, code):
    (tmp_path / "broken_plugin.py").write_text(code)
    with pytest.raises(PluginError, match=r"^plugin 'broken_plugin' cannot be imported \([^\n]*\);[^\n]*$"):
        plugins.load(["broken_plugin"])


@pytest.mark.parametrize("name", ["json", "sys"])
def test_a_module_that_adds_nothing_is_not_a_plugin(toy, name):
    with pytest.raises(PluginError, match=f"module '{name}' is not a plugin"):
        plugins.load([name])


@pytest.mark.parametrize(("code", "error"), [("None", PluginError), ("1", PluginError), ("('vit',)", ModelError)])
def test_what_a_plugin_adds_is_checked(toy, tmp_path, code, error):
    (tmp_path / "toy_plugin.py").write_text(f"FAMILIES = {code}")
    plugins.load([toy])
    with pytest.raises(error, match="expected a"):
        families()


@pytest.mark.parametrize(
    ("name", "variants", "words"),
    [
        ("vit", {}, "two families have the name 'vit'"),
        ("toy", {"mambaout_tiny": Variant({})}, "two models have the name 'mambaout_tiny'"),
    ],
)
def test_two_of_one_name_are_an_error(toy, monkeypatch, name, variants, words):
    family = Family(name, find_family("mambaout_tiny").module, {}, variants, ())
    monkeypatch.setattr(plugins, "provided", lambda attribute: (family,))
    with pytest.raises(ModelError, match=words):
        mo.list_models()


def test_an_unknown_model_has_its_nearest_name():
    with pytest.raises(ModelError, match="'mambaout_tinny' is not a known model; did you mean 'mambaout_tiny'"):
        mo.create_model("mambaout_tinny")


@pytest.mark.parametrize(("name", "option"), [("vit_tiny_patch16_224", "dims"), ("mambaout_tiny", "embed_dim")])
def test_an_option_of_another_family_is_refused_with_the_familys_own(name, option):
    with pytest.raises(ModelError, match=f"'{option}' is an option of .*, not of {name}; expected") as caught:
        mo.create_model(name, **{option: 3})
    assert all(own in str(caught.value) for own in find_family(name).options)
