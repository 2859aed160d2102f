"""The sentence at the top says what holds over all tests, better and worse, and bounds the rest by these tests."""

import pytest

from mambaout_jax.study.findings import Divergence, Outcome, find
from mambaout_jax.study.statistics import detectable_difference
from mambaout_jax.study.twins import Twin

CONV = [88.0, 90.0, 92.0]
SSMS = ("ssm-causal", "ssm-bidirectional", "ssm-cross")
ALIKE, ABOVE, BELOW = [0.5, -0.25, 0.125], [1.9, 2.0, 2.1], [-8.1, -8.0, -7.9]
OWN = [3.0, 3.8, 4.6]  # p is 0.035: told apart by itself, and not as one of six


def study(diverged=(), **differences):
    """Find what differences to convolution alone show; those that are not named are alike.

    Args:
        diverged: names of twins.
        differences: by comparison, or comparison and mixer, with underscores for dashes.
    """
    twins = [Twin("conv", "conv", ("removed", "matched"), {}, 1, 1)]
    twins += [Twin(f"{place}-{ssm}", ssm, (place,), {}, 1, 1) for place in ("removed", "matched") for ssm in SSMS]
    top1 = {"conv": CONV}
    for twin in twins[1:]:
        named = [differences.get(key.replace("-", "_")) for key in (twin.name, twin.comparisons[0])]
        values = next(filter(None, named), ALIKE)
        top1[twin.name] = [base + value for base, value in zip(CONV, values, strict=True)]
    outcomes = {name: [Outcome(value, 9, (1.0,)) for value in values] for name, values in top1.items()}
    memory = dict.fromkeys(top1, 1)
    left_out = {name: Divergence(1, "step 3 has loss nan") for name in diverged}
    return find(twins, outcomes, memory, 10.0, left_out)


def test_the_bound_is_that_of_all_tests():
    answer = study(removed_ssm_cross=[2.0, -2.0, 0.0])["answer"]
    bound = detectable_difference([2.0, -2.0, 0.0], tests=6)
    assert answer == (
        "No SSM did better than convolution alone by more than chance explains. That does not show that none could: "
        f"over 6 tests, a true difference below {bound:.2f} points might well go unseen here."
    )
    table = study(removed_ssm_cross=[2.0, -2.0, 0.0])["comparisons"][0]["differences"][2]["detectable"]
    assert bound > 2 * table == 2 * detectable_difference([2.0, -2.0, 0.0])


def test_what_is_better_by_a_test_of_its_own_is_not_called_alike():
    found = study(removed_ssm_causal=ABOVE, matched_ssm_causal=OWN)
    assert found["held"] == ["removed-ssm-causal"]
    assert found["answer"] == (
        "Better than convolution alone with as many channels: SSM (causal). With as many parameters, none holds over "
        "all 6 tests. An SSM that is called better below and not here is so by a test of its own, of which there are 6."
    )
    assert found["comparisons"][1]["verdict"].startswith("Better than convolution alone: SSM (causal).")


def test_both_comparisons_are_in_the_answer():
    answer = study(removed=ABOVE, matched_ssm_cross=ABOVE)["answer"]
    assert answer == (
        "Better than convolution alone with as many parameters: SSM (cross); with as many channels: SSM (causal), SSM "
        "(bidirectional), SSM (cross)."
    )


def test_where_all_are_worse_the_answer_says_so_and_nothing_is_unseen():
    titles = "SSM (causal), SSM (bidirectional), SSM (cross)"
    assert study(removed=BELOW, matched=BELOW)["answer"] == (
        f"Worse than convolution alone with as many parameters: {titles}; with as many channels: {titles}."
    )


def test_the_bound_is_of_those_that_are_not_told_apart():
    wide = [-28.0, -30.0, -32.0]
    answer = study(removed=BELOW, matched_ssm_causal=wide)["answer"]
    bound = detectable_difference(ALIKE, tests=6)
    assert answer.startswith("No SSM did better than convolution alone by more than chance explains. Worse than ")
    assert "with as many parameters: SSM (causal); with as many channels: SSM (causal), SSM (b" in answer
    assert answer.endswith(
        f"none of the others could: over 6 tests, a true difference below {bound:.2f} points might well go unseen here."
    )


def test_what_is_worse_by_a_test_of_its_own_is_told():
    answer = study(matched_ssm_causal=[-value for value in OWN], removed_ssm_cross=OWN)["answer"]
    assert "An SSM that is called better or worse below and not here is so by a test of its own" in answer
    assert "Worse than convolution" not in answer


def test_a_twin_that_diverged_is_left_out_and_told():
    found = study(diverged=["matched-ssm-cross"], matched_ssm_causal=OWN)
    assert [twin["name"] for twin in found["twins"]] == [
        "conv", "removed-ssm-causal", "removed-ssm-bidirectional", "removed-ssm-cross", "matched-ssm-causal",
        "matched-ssm-bidirectional",
    ]  # fmt: skip
    removed, matched = found["comparisons"]
    assert [difference["twin"] for difference in matched["differences"]] == [
        "matched-ssm-causal", "matched-ssm-bidirectional",
    ]  # fmt: skip
    assert matched["verdict"].endswith(" Left out, as a run of it diverged: SSM (cross), in repeat 1.")
    assert "diverged" not in removed["verdict"]
    assert "over 5 tests" in found["answer"]
    assert found["answer"].endswith(" Left out, as a run of it diverged: SSM (cross) with as many parameters.")
    assert found["diverged"] == [
        {
            "twin": "matched-ssm-cross", "title": "SSM (cross)", "comparisons": ["matched"], "repeat": 1,
            "reason": "step 3 has loss nan", "model": {}, "has_ssm": True,
        }
    ]  # fmt: skip


@pytest.mark.parametrize("size", ["matched", "removed"])
def test_without_an_ssm_that_trained_nothing_is_said_of_it(size):
    every = [f"{place}-{ssm}" for place in ("removed", "matched") for ssm in SSMS]
    assert study(diverged=every)["answer"] == "Every SSM diverged; nothing can be said of it."
    answer = study(diverged=[name for name in every if name.startswith(size)])["answer"]
    assert answer.startswith("No SSM did better")
    assert "over 3 tests" in answer
