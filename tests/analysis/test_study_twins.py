"""Twins differ in how they mix tokens, have as many parameters where that is asked, and see images in one way."""

import jax
import pytest

from mambaout_jax.models import Model, ModelError, create_model
from mambaout_jax.run.errors import RunError
from mambaout_jax.study import twins as study_twins
from mambaout_jax.study.twins import COMPARISONS, MIXERS, design_twins
from tests.analysis.study_runs import MODEL

GIVEN = {**MODEL, "dims": (16, 24), "drop_path_rate": 0.1, "drop_rate": None, "crop_pct": 0.8, "dtype": "bfloat16"}


@pytest.fixture(scope="module")
def twins():
    return {twin.name: twin for twin in design_twins(GIVEN, 10)}


def build(twin):
    return create_model(num_classes=10, **twin.model)


def test_every_mixer_has_its_place_in_each_comparison(twins):
    names = [f"{comparison}-{mixer}" for comparison, (_, mixers) in COMPARISONS.items() for mixer in mixers]
    assert list(twins) == ["conv", *names]
    assert twins["conv"].comparisons == tuple(COMPARISONS)
    for name in names:
        assert [f"{comparison}-{twins[name].mixer}" for comparison in twins[name].comparisons] == [name]
        options = build(twins[name]).options
        assert MIXERS[twins[name].mixer].options.items() <= options.items()


def test_counts_are_those_of_the_models(twins):
    for twin in twins.values():
        variables = jax.eval_shape(build(twin).init, jax.random.key(0))
        assert twin.params == sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
        assert twin.macs > 10_000


def test_widths_are_searched_for_without_drawing_a_model(monkeypatch, twins):
    drawn = []
    draw = Model.init
    monkeypatch.setattr(Model, "init", lambda self, key: drawn.append(self.name) or draw(self, key))
    monkeypatch.setattr(study_twins, "count_macs", lambda *_: 1)
    found = design_twins(GIVEN, 10)
    assert [twin.params for twin in found] == [twin.params for twin in twins.values()]
    assert len(drawn) == len(found)  # for the multiply-adds


def test_removing_the_ssm_leaves_all_else_as_it_was(twins):
    mixing = ("token_mixer", "scan_order")
    conv = {key: value for key, value in build(twins["conv"]).options.items() if key not in mixing}
    assert conv["dims"] == GIVEN["dims"]
    for name, twin in twins.items():
        if name.startswith("removed-"):
            assert {key: value for key, value in build(twin).options.items() if key not in mixing} == conv
            assert twin.params > twins["conv"].params


def test_matched_twins_have_as_many_parameters_to_two_percent(twins):
    matched = [twin for name, twin in twins.items() if name.startswith("matched-")]
    assert len(matched) == 5
    for twin in matched:
        assert abs(twin.params / twins["conv"].params - 1) <= 0.02


def test_twins_see_images_in_the_same_way_and_train_alike(twins):
    conv = build(twins["conv"])
    for twin in twins.values():
        model = build(twin)
        assert model.input_spec == conv.input_spec
        for option in ("in_chans", "drop_path_rate", "drop_rate", "dtype", "scan_blocks", "remat"):
            assert model.options[option] == conv.options[option], (twin.name, option)


def test_a_vit_has_the_tokens_of_the_first_stage_and_as_many_blocks(twins):
    conv, vit = build(twins["conv"]), build(twins["matched-vit-causal"])
    assert vit.feature_info[0].stride == conv.feature_info[0].stride
    assert vit.options["depth"] == sum(conv.options["depths"])
    assert (vit.options["class_token"], vit.options["global_pool"]) == (False, "avg")


def test_widths_that_cannot_match_are_one_sentence():
    with pytest.raises(RunError, match=r"twin ssm-causal has .* parameters .*larger config.model.dims"):
        design_twins({**MODEL, "depths": (1,), "dims": (4,)}, 2)


def test_what_has_no_ssm_to_take_out_is_refused():
    with pytest.raises(RunError, match=r"config.model.name is 'vit_tiny_patch16_224'; .*one of mambaout_\*"):
        design_twins({"name": "vit_tiny_patch16_224"}, 10)


def test_an_unknown_option_is_the_models_own_sentence():
    with pytest.raises(ModelError, match="depth"):
        design_twins({**MODEL, "deppths": (1, 1)}, 10)
