"""The reference data is read by its own names, as the model that its shapes tell, and means the same."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import mambaout_jax as mo
from mambaout_jax.models import MambaOut
from mambaout_jax.weights.key_maps import KEY_TABLES
from mambaout_jax.weights.state_dict import find_table, to_ours, to_theirs
from tests.marks import slow_but
from tests.models import golden
from tests.weights import pytorch

CASES = [*golden.names("mambaout_orig__*"), *golden.names("timm_mambaout__*")]
# What no shape tells.
UNTOLD = ("act_layer",)


def test_there_are_cases_of_both_dialects():
    dialects = [find_table(golden.load(name).state_dict).dialect for name in CASES]
    assert dialects == ["mambaout"] * 4 + ["timm"] * (len(CASES) - 4)
    assert len(CASES) >= 10


@pytest.mark.parametrize("name", slow_but(["mambaout_orig__narrow_64", "timm_mambaout__test_mambaout"], CASES))
def test_a_file_of_the_reference_alone_gives_its_logits(name, tmp_path):
    case = golden.load(name)
    save_file(case.state_dict, tmp_path / "weights.safetensors")
    untold = {key: case.options[key] for key in UNTOLD if key in case.options}
    if name.endswith("__test_mambaout"):
        untold = {}
    model, variables = mo.load_pretrained(tmp_path / "weights.safetensors", img_size=case.input.shape[1:3], **untold)
    logits = pytorch.logits_of(model, variables, case.input)
    np.testing.assert_allclose(logits, case.output, rtol=0, atol=case.atol)


@pytest.mark.parametrize("name", CASES)
def test_the_reference_comes_back_bit_for_bit(name):
    case = golden.load(name)
    base = "test_mambaout" if name.endswith("test_mambaout") else "mambaout_femto"
    model = mo.create_model(base, **case.options)
    variables = mo.from_torch(model, case.state_dict)
    dialect = find_table(case.state_dict).dialect
    pytorch.assert_equal_state_dicts(mo.to_torch(model, variables, dialect), case.state_dict)


def test_the_tables_rename_as_timm_does():
    about = json.loads((golden.GOLDEN / "timm_mambaout__remapped_from_original.json").read_text())
    timm, original = (table for table in KEY_TABLES if table.family is MambaOut)
    assert (timm.dialect, original.dialect) == ("timm", "mambaout")
    renamed = about["key_map_original_to_timm"]
    assert renamed.keys() == golden.load("mambaout_orig__narrow_64").state_dict.keys()
    assert {key: to_theirs(timm, to_ours(original, key)) for key in renamed} == renamed
    assert {to_theirs(original, to_ours(timm, key)): key for key in renamed.values()} == renamed


def test_the_same_weights_in_both_dialects_are_the_same_variables():
    original, remapped = (golden.load(name) for name in CASES if "narrow" in name or "remapped" in name)
    model = mo.create_model("mambaout_femto", **original.options)
    pytorch.assert_equal_trees(*(mo.from_torch(model, case.state_dict) for case in (original, remapped)))
