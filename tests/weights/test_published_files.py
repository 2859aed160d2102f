"""Files in the formats that the authors of each family publish are read, imported and used for prediction."""

import argparse
import json
import warnings
from pathlib import Path
from typing import NamedTuple

import jax
import pytest
from PIL import Image
from safetensors.numpy import save_file

import mambaout_jax as mo
from mambaout_jax.__main__ import main
from mambaout_jax.models.registry import BUILT_IN
from mambaout_jax.weights import write_folder
from tests.marks import slow_but
from tests.weights import pytorch

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")

WEIGHTS, OTHERS = "weights", "others"
TRAINING = {"epoch": 299, "optimizer": {"state": {}}, "args": argparse.Namespace(lr=1e-3)}


class Published(NamedTuple):
    """A format of weights files.

    Args:
        name: variant of the family.
        entries: entries of the file that have a state dict, the one that is read with WEIGHTS; None for a safetensors
            file.
        prefix: prefix of all keys.
        key_format: key format of the keys; None for the first of the family.
    """

    name: str
    ending: str
    entries: dict[str, str] | None
    prefix: str = ""
    key_format: str | None = None


FORMATS = [
    Published("vmamba_tiny_s1l8", ".pth", {"model": OTHERS, "model_ema": WEIGHTS}),
    Published("vmamba_tiny_v0", ".pth", {"model": WEIGHTS}),
    Published("vmamba_small_v0", ".pth", {"model": OTHERS, "model_ema": WEIGHTS}, key_format="vmamba_archive"),
    Published("localvmamba_small", ".ckpt", {"state_dict": WEIGHTS}, "module."),
    Published("localvmamba_small", ".ckpt", {"model": WEIGHTS}),
    Published("mambavision_t", ".pth.tar", {"state_dict": WEIGHTS}),
    Published("mambavision_b", ".pth.tar", {"state_dict": OTHERS, "state_dict_ema": WEIGHTS}, "module."),
    Published("mambavision_s", ".pth", {"model": WEIGHTS}, "encoder."),
    Published("mambavision_t", ".safetensors", None, "model."),
    Published("vim_tiny", ".pth", {"model": WEIGHTS}),
    Published("vim_tiny", ".pth", {"model": OTHERS, "model_ema": WEIGHTS}, "module."),
    Published("localvim_tiny", ".ckpt", {"state_dict": WEIGHTS}, "module."),
    Published("localvim_tiny_middle_cls_token", ".ckpt", {"model": WEIGHTS}),
    Published("plainmamba_l1", ".pth", {"state_dict": WEIGHTS}),  # its keys start with backbone.
    Published("plainmamba_l2", ".pth", {"state_dict": WEIGHTS}, "module."),
    Published("vmamba_tiny_s2l5", ".pth", {"state_dict": WEIGHTS}, "backbone."),
]


def to_tensors(state_dict, prefix=""):
    return {prefix + key: torch.from_numpy(value.copy()) for key, value in state_dict.items()}


@pytest.mark.slow
@pytest.mark.parametrize("published", FORMATS, ids=lambda found: f"{found.name}{found.ending}-{found.prefix}")
def test_weights_in_a_file_as_published_are_read(tmp_path, published):
    model = pytorch.small_model(published.name)
    drawn = {WEIGHTS: pytorch.draw(model, 0), OTHERS: pytorch.draw(model, 1)}
    state_dicts = {kind: mo.to_torch(model, variables, published.key_format) for kind, variables in drawn.items()}
    file = tmp_path / f"weights{published.ending}"
    if published.entries is None:
        save_file({published.prefix + key: value for key, value in state_dicts[WEIGHTS].items()}, file)
    else:
        entries = {entry: to_tensors(state_dicts[kind], published.prefix) for entry, kind in published.entries.items()}
        torch.save({**TRAINING, **entries}, file)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of the other entries, and of the license
        pytorch.assert_equal_trees(mo.from_torch(model, file), drawn[WEIGHTS])


def test_the_documentation_lists_all_endings_and_entries():
    text = (Path(__file__).parents[2] / "docs" / "convert.md").read_text()
    sources = text[text.index("## Sources") : text.index("## Key formats")]
    needed: set[str] = set()
    for published in FORMATS:
        needed |= {published.ending, published.prefix, *(published.entries or ())} - {""}
    assert {word for word in needed if f"`{word}`" not in sources} == set()


@pytest.mark.run
@pytest.mark.parametrize(
    "name",
    slow_but(["vmamba_tiny_s1l8", "mambavision_t"], [next(iter(family.variants)) for family in BUILT_IN], "nightly"),
)
def test_weights_of_every_family_are_imported_and_used_for_prediction(tmp_path, capsys, name):
    model = pytorch.small_model(name)
    state_dict = mo.to_torch(model, model.init(jax.random.key(0)))
    write_folder(tmp_path / "model", model, state_dict)
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save({**TRAINING, "model": to_tensors(state_dict)}, tmp_path / "model" / "pytorch_model.bin")
    assert main(["convert", "import", str(tmp_path / "model"), "--out", str(tmp_path / "imported")]) == 0
    Image.new("RGB", (40, 30), (200, 20, 20)).save(tmp_path / "image.png")
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "imported"), str(tmp_path / "image.png"), "--json"]) == 0
    [found] = json.loads(capsys.readouterr().out)
    assert len(found["predictions"]) == model.num_classes
