"""Converted weights of the reference implementations give their logits and maps, and come back unchanged."""

import fnmatch

import jax
import numpy as np
import pytest

import mambaout_jax as mo
from mambaout_jax.models.registry import BUILT_IN
from mambaout_jax.weights.key_map import from_torch_key, is_ignored, matching_formats, to_torch_key
from tests.marks import slow_but
from tests.models import golden
from tests.weights import pytorch


def test_there_is_reference_data_of_every_family():
    assert golden.FAMILIES.keys() == {family.name for family in BUILT_IN}
    for family, data in golden.FAMILIES.items():
        for pattern in data["cases"]:
            assert fnmatch.filter(golden.known(), pattern), (family, pattern)
        assert data.get("restricted") or any(map(golden.names, data["cases"])), family


def test_numbers_that_restricted_code_computed_are_not_in_the_repository():
    for family, data in golden.FAMILIES.items():
        if data.get("restricted"):
            assert not list(golden.GOLDEN.glob(f"{family}*")), family


QUICK = ["mambaout_orig__narrow_64", "timm_mambaout__test_mambaout", "vim__tiny_like", "vit__full_cls_token"]


@pytest.mark.parametrize("name", slow_but(QUICK, golden.model_names()))
def test_converted_weights_compute_what_the_reference_computes_and_come_back(name):
    case = golden.load(name)
    model = golden.build(name, case)
    variables = mo.from_torch(model, case.state_dict)

    @jax.jit
    def run(variables, images):
        return [model.apply(variables, images, output=output) for output in ("logits", "features")]

    with jax.default_matmul_precision("highest"):
        logits, maps = run(variables, case.input)
    np.testing.assert_allclose(logits, case.output, rtol=0, atol=case.atol)
    for ours, (expected, layout) in zip(maps, golden.stage_maps(name, case, len(maps)), strict=True):
        if layout == "BLC":
            ours = ours.reshape(len(ours), -1, ours.shape[-1])
            expected = golden.patches(name, expected, ours.shape[1])
        np.testing.assert_allclose(ours, expected, rtol=0, atol=case.atol)
    key_format = matching_formats(case.state_dict)[0][1]
    exported = mo.to_torch(model, variables, key_format.name)
    assert exported.keys() == case.state_dict.keys()
    buffers = {key for key in exported if is_ignored(key_format, key)}
    pytorch.assert_equal_state_dicts(
        *({k: v for k, v in d.items() if k not in buffers} for d in (exported, case.state_dict))
    )
    for key in buffers:
        ours, theirs = exported[key], case.state_dict[key]
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        if not key.endswith("num_batches_tracked"):  # the reference has counted batches
            # Angles are equal; PyTorch rounds some cosines and sines to a neighboring number.
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-7)


@pytest.mark.slow
def test_every_key_format_of_a_family_is_compared():
    compared = {matching_formats(golden.load(name).state_dict)[0][1].name for name in golden.model_names()}
    absent = {family for family, data in golden.FAMILIES.items() if data.get("restricted")} - {
        family.name for family in BUILT_IN if compared & {key_format.name for key_format in family.key_formats}
    }
    formats = {key_format.name for family in BUILT_IN if family.name not in absent for key_format in family.key_formats}
    assert compared == formats


def test_parameters_have_timms_names():
    model = mo.create_model("test_mambaout", num_classes=10)
    paths = jax.tree.leaves_with_path(jax.eval_shape(model.init, jax.random.key(0))["params"])
    ours = {".".join(str(entry.key) for entry in path) for path, _ in paths}
    assert ours == golden.load("timm_mambaout__test_mambaout").state_dict.keys()


def test_the_rules_rename_as_timm_does():
    (family,) = [family for family in BUILT_IN if "mambaout_femto" in family.variants]
    timm, original = family.key_formats
    assert (timm.name, original.name) == ("timm", "mambaout")
    renamed = golden.about("timm_mambaout__remapped_from_original")["key_map_original_to_timm"]
    assert renamed.keys() == golden.load("mambaout_orig__narrow_64").state_dict.keys()
    assert {key: to_torch_key(timm, from_torch_key(original, key)) for key in renamed} == renamed
    assert {to_torch_key(original, from_torch_key(timm, key)): key for key in renamed.values()} == renamed


def test_the_same_weights_in_both_key_formats_are_the_same_variables():
    original, remapped = map(golden.load, ("mambaout_orig__narrow_64", "timm_mambaout__remapped_from_original"))
    model = mo.create_model("mambaout_femto", **original.options)
    pytorch.assert_equal_trees(*(mo.from_torch(model, case.state_dict) for case in (original, remapped)))
