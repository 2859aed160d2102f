"""Files of other programs are read: tensors are loaded, all other objects are ignored, and no code is run."""

import argparse
import collections
import dataclasses
import pathlib
import signal

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import mambaout_jax as mo
from mambaout_jax.weights.files import read_file
from mambaout_jax.weights.tensors import without_prefixes
from tests.marks import slow_but
from tests.weights import pytorch
from tests.weights.test_torch_file import Evil

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")

WEIGHTS = {"stem.weight": torch.arange(6.0).reshape(2, 3), "head.bias": torch.ones(2).bfloat16()}


class Config(dict):
    """A config as yacs has it: a dict with attributes."""

    def __getattr__(self, name):
        return self[name]


@dataclasses.dataclass
class Options:
    """A config as a dataclass."""

    lr: float = 0.1


def others(tmp_path):
    """Return what programs store next to weights, by the name of its kind."""
    nested = collections.defaultdict(list)
    nested["a"].append(1)
    return {
        "args": argparse.Namespace(lr=0.1, hidden=Evil(tmp_path / "ran")),
        "config": Config(a=1, b=[Config(c=2)]),
        "options": Options(),
        "best": np.float64(3),
        "history": np.ones(3),
        "log": nested,
        "last": collections.deque([1]),
        "tags": {"a"},
        "counts": collections.Counter("aab"),
        "path": pathlib.PurePosixPath("x"),
        "signal": signal.SIGINT,
        "device": torch.device("cpu"),
        "evil": Evil(tmp_path / "ran"),
        "epoch": 3,
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}},
    }


FORMATS = [*({"pickle_protocol": protocol} for protocol in (2, 3, 4, 5)), {"_use_new_zipfile_serialization": False}]


@pytest.mark.torch
@pytest.mark.parametrize("how", FORMATS, ids=str)
@pytest.mark.parametrize("wrapper", ["model", "state_dict", "model_state_dict", None])
def test_everything_beside_the_tensors_is_ignored_listed_and_not_run(tmp_path, how, wrapper):
    weights = WEIGHTS if wrapper is None else {wrapper: WEIGHTS}
    torch.save({**weights, **others(tmp_path)}, tmp_path / "a.pth", **how)
    content = read_file(tmp_path / "a.pth")
    assert not (tmp_path / "ran").exists()
    assert content.wrapper == wrapper
    np.testing.assert_array_equal(content.tensors["stem.weight"], [[0, 1, 2], [3, 4, 5]])
    assert set(content.shapes) == set(WEIGHTS)
    assert [words.split()[0] for words in content.ignored] == list(others(tmp_path))
    assert any("argparse.Namespace" in words for words in content.ignored)


@pytest.mark.torch
@pytest.mark.parametrize("name", list(others(pathlib.Path())))
def test_each_kind_of_object_may_stand_next_to_the_weights(tmp_path, name):
    torch.save({"model": WEIGHTS, name: others(tmp_path)[name]}, tmp_path / "a.pth")
    content = read_file(tmp_path / "a.pth")
    assert set(content.shapes) == set(WEIGHTS)
    assert len(content.ignored) == 1
    assert not (tmp_path / "ran").exists()


PREFIXES = ["module.", "_orig_mod.", "model.", "backbone.", "module._orig_mod.", "model.backbone.", "model._orig_mod."]
ODD = ["n_averaged", "criterion.weight", "ema_decay"]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("odd", [[], *([name] for name in ODD), ODD])
def test_prefixes_are_removed_and_keys_without_them_are_listed(prefix, odd):
    names = [f"stages.{i}.weight" for i in range(5)]
    found, outside = without_prefixes([*odd, *(prefix + name for name in names)])
    assert found == {name: prefix + name for name in names}
    assert set(outside) == set(odd)


@pytest.mark.parametrize("names", [["a", "b"], ["module.a", "b"], ["modules.a"], [], ["model.a", "backbone.a"]])
def test_other_names_are_left_as_they_are(names):
    assert without_prefixes(names) == ({name: name for name in names}, ())


def test_of_two_networks_in_a_file_neither_is_chosen():
    network = list(mo.to_torch(pytorch.small_model(), pytorch.draw(pytorch.small_model())))
    names = [prefix + name for prefix in ("model.", "module.") for name in network]
    assert without_prefixes(names) == ({name: name for name in names}, ())
    both = [prefix + name for prefix in ("model.", "model_ema.") for name in network]
    assert without_prefixes(both)[0] == {name: f"model.{name}" for name in network}


@pytest.mark.parametrize("prefix", slow_but(["module."], PREFIXES))
@pytest.mark.parametrize("key_format", ["timm", "mambaout"])
def test_a_prefixed_file_loads_like_the_plain_one(tmp_path, prefix, key_format):
    model = pytorch.small_model()
    variables = pytorch.draw(model)
    state_dict = mo.to_torch(model, variables, key_format=key_format)
    wrapped = {"n_averaged": np.zeros((), np.int64), **{prefix + key: value for key, value in state_dict.items()}}
    save_file(wrapped, tmp_path / "a.safetensors")
    for source in (tmp_path / "a.safetensors", wrapped):
        with pytest.warns(UserWarning, match="ignored n_averaged"):
            loaded = mo.from_torch(model, source)
        pytorch.assert_equal_trees(loaded, jax.tree.map(np.asarray, mo.from_torch(model, state_dict)))
