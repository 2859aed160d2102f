"""The reference data is read under its own names and gives the same logits."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import mambaout_jax as mo
from mambaout_jax.models import find_family
from mambaout_jax.weights.key_map import from_torch_key, matching_formats, to_torch_key
from tests.marks import slow_but
from tests.models import golden
from tests.weights import pytorch

CASES = [*golden.names("mambaout_orig__*"), *golden.names("timm_mambaout__*")]


def format_of(case):
    return matching_formats(case.state_dict)[0][1].name


def test_there_are_cases_of_both_key_formats():
    formats = [format_of(golden.load(name)) for name in CASES]
    assert formats == ["mambaout"] * 4 + ["timm"] * (len(CASES) - 4)
    assert len(CASES) >= 10


@pytest.mark.parametrize("name", slow_but(["mambaout_orig__narrow_64", "timm_mambaout__test_mambaout"], CASES))
def test_a_file_of_the_reference_gives_its_logits(name, tmp_path):
    case = golden.load(name)
    save_file(case.state_dict, tmp_path / "weights.safetensors")
    if name.endswith("__test_mambaout"):  # a variant, which the shapes alone name
        model, variables = mo.load_pretrained(tmp_path / "weights.safetensors")
        assert model.name == "test_mambaout"
    else:
        model = mo.create_model("mambaout_femto", img_size=case.input.shape[1:3], **case.options)
        variables = mo.from_torch(model, tmp_path / "weights.safetensors")
    logits = pytorch.logits_of(model, variables, case.input)
    np.testing.assert_allclose(logits, case.output, rtol=0, atol=case.atol)


@pytest.mark.parametrize("name", CASES)
def test_the_reference_comes_back_bit_for_bit(name):
    case = golden.load(name)
    base = "test_mambaout" if name.endswith("test_mambaout") else "mambaout_femto"
    model = mo.create_model(base, **case.options)
    variables = mo.from_torch(model, case.state_dict)
    pytorch.assert_equal_state_dicts(mo.to_torch(model, variables, format_of(case)), case.state_dict)


def test_the_rules_rename_as_timm_does():
    about = json.loads((golden.GOLDEN / "timm_mambaout__remapped_from_original.json").read_text())
    timm, original = find_family("mambaout_femto").key_formats
    assert (timm.name, original.name) == ("timm", "mambaout")
    renamed = about["key_map_original_to_timm"]
    assert renamed.keys() == golden.load("mambaout_orig__narrow_64").state_dict.keys()
    assert {key: to_torch_key(timm, from_torch_key(original, key)) for key in renamed} == renamed
    assert {to_torch_key(original, from_torch_key(timm, key)): key for key in renamed.values()} == renamed


def test_the_same_weights_in_both_key_formats_are_the_same_variables():
    original, remapped = (golden.load(name) for name in CASES if "narrow" in name or "remapped" in name)
    model = mo.create_model("mambaout_femto", **original.options)
    pytorch.assert_equal_trees(*(mo.from_torch(model, case.state_dict) for case in (original, remapped)))
