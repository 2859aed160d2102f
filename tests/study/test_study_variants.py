"""Variants differ in how they mix tokens, have equal parameters where they are matched, and see equal images."""

import copy
import runpy

import jax
import pytest

from mambaout_jax.models import Model, ModelError, create_model
from mambaout_jax.run.errors import RunError
from mambaout_jax.study.variants import COMPARISONS, design_variants
from tests.study.study_runs import EXPERIMENT, MODEL

STUDY = runpy.run_path(str(EXPERIMENT))["get_study"]().to_dict()
GIVEN = {**MODEL, "dims": (16, 24), "drop_path_rate": 0.1, "crop_pct": 0.8, "dtype": "bfloat16"}


def create(options):
    return create_model(num_classes=10, **options)


def build(variant):
    return create(variant.model)


@pytest.fixture(scope="module")
def variants():
    return {variant.name: variant for variant in design_variants(GIVEN, STUDY, create)}


@pytest.mark.slow
def test_every_entry_has_its_place_in_each_comparison(variants):
    names = {f"{comparison}-{name}": name for comparison in COMPARISONS for name in STUDY[comparison]}
    assert list(variants) == ["conv", *names]
    assert variants["conv"].comparisons == tuple(COMPARISONS)
    for name, entry in names.items():
        assert [f"{comparison}-{entry}" for comparison in variants[name].comparisons] == [name]
        spec, options = STUDY["variants"][entry], build(variants[name]).options
        assert {key: value for key, value in spec["model"].items() if key != "name"}.items() <= options.items()
        assert (variants[name].title, variants[name].has_ssm) == (spec["title"], spec["has_ssm"])


@pytest.mark.slow
def test_counts_are_those_of_the_models(variants):
    for variant in variants.values():
        variables = jax.eval_shape(build(variant).init, jax.random.key(0))
        assert variant.params == sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
        assert variant.macs > 10_000


@pytest.mark.slow
def test_widths_are_searched_without_initializing_a_model(monkeypatch, variants):
    monkeypatch.setattr(Model, "init", None)
    found = design_variants(GIVEN, STUDY, create)
    assert [variant.params for variant in found] == [variant.params for variant in variants.values()]


def test_removing_the_ssm_leaves_all_else_as_it_was(variants):
    mixing = ("token_mixer", "scan_order")
    conv = {key: value for key, value in build(variants["conv"]).options.items() if key not in mixing}
    assert conv["dims"] == GIVEN["dims"]
    for name, variant in variants.items():
        if name.startswith("removed-"):
            assert {key: value for key, value in build(variant).options.items() if key not in mixing} == conv
            assert variant.params > variants["conv"].params


def test_matched_variants_have_as_many_parameters_to_two_percent(variants):
    matched = [variant for name, variant in variants.items() if name.startswith("matched-")]
    assert len(matched) == 5
    for variant in matched:
        assert abs(variant.params / variants["conv"].params - 1) <= 0.02


def test_variants_have_the_same_preprocessing_and_training(variants):
    conv = build(variants["conv"])
    for variant in variants.values():
        model = build(variant)
        assert model.input_spec == conv.input_spec
        for option in ("in_chans", "drop_path_rate", "drop_rate", "dtype", "scan_blocks", "remat"):
            assert model.options[option] == conv.options[option], (variant.name, option)


def test_a_vit_has_the_tokens_of_the_first_stage_and_as_many_blocks(variants):
    conv, vit = build(variants["conv"]), build(variants["matched-vit-causal"])
    assert vit.feature_info[0].stride == conv.feature_info[0].stride
    assert vit.options["depth"] == sum(conv.options["depths"])
    assert (vit.options["class_token"], vit.options["global_pool"]) == (False, "avg")


@pytest.mark.slow
def test_widths_that_cannot_match_are_one_sentence():
    with pytest.raises(RunError, match=r"variant ssm-causal has .* parameters .*larger config.model.dims"):
        design_variants({**MODEL, "depths": (1,), "dims": (4,)}, STUDY, create)


def test_what_has_no_ssm_to_take_out_is_refused():
    with pytest.raises(RunError, match=r"config.model.name is 'vit_tiny_patch16_224', which has no .*token_mixer"):
        design_variants({"name": "vit_tiny_patch16_224"}, STUDY, create)


def test_an_unknown_option_is_the_models_own_sentence():
    with pytest.raises(ModelError, match="depth"):
        design_variants({**MODEL, "deppths": (1, 1)}, STUDY, create)


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (("baseline",), "convv", r"config.study.baseline is 'convv'; expected 'conv' or "),
        (("matched",), ("vit",), "config.study.matched has 'vit'; "),
        (("matched",), 5, "config.study.matched is 5; expected a tuple of non-empty strings"),
        (("matched",), ("ssm-causal", "ssm-causal"), "config.study.matched has 'ssm-causal'; expected distinct names"),
        (("matched",), ("conv",), "config.study.matched has 'conv'; expected distinct names"),
        (
            ("removed",),
            None,
            r"config.study.removed is unset; set it, .* --config.study.removed=VALUE \(a tuple of non-empty strings\)",
        ),
        (("variants",), "x", "config.study.variants is 'x'; expected a section"),
        (
            ("variants", "conv", "width"),
            None,
            "config.study.variants.conv.width is unset; set it, for example with --config.study.variants.conv",
        ),
        (("variants", "conv", "model"), 3, "config.study.variants.conv.model is 3; expected a section"),
        (("more",), (), "config.study has the keys .*; expected baseline, removed, matched, variants"),
        (
            ("variants", "conv", "titel"),
            "x",
            "config.study.variants.conv is invalid .*'titel'.*; expected keys are title, has_ssm, model",
        ),
        (("variants", "vit-full", "derived", "depth"), "blocks", "derived.depth is 'blocks'; expected .*num_blocks"),
    ],
)
def test_an_invalid_section_is_one_sentence(path, value, sentence):
    study = copy.deepcopy(STUDY)
    *folders, key = path
    section = study
    for folder in folders:
        section = section[folder]
    section[key] = value
    with pytest.raises(RunError, match=sentence):
        design_variants(GIVEN, study, create)


def test_a_config_without_the_section_is_one_sentence():
    with pytest.raises(RunError, match=r"config.study is missing; .*configs/study.py"):
        design_variants(GIVEN, None, create)
