"""The answer names what is significant after correction, better and worse, and states the power of its tests."""

import pytest

from mambaout_jax.study.findings import Divergence, Outcome, summarize
from mambaout_jax.study.statistics import minimum_detectable_effect
from mambaout_jax.study.table import comparison_rows
from mambaout_jax.study.variants import StudyVariant
from mambaout_jax.tasks.api import Metric

CONV = [88.0, 90.0, 92.0]
ORDERS = ("causal", "bidirectional", "cross")
ALIKE, ABOVE, BELOW = [0.5, -0.25, 0.125], [1.9, 2.0, 2.1], [-8.1, -8.0, -7.9]
METRIC = Metric("top1", "top-1", "%")
OWN = [3.0, 3.8, 4.6]  # p is 0.035: significant in a single test, and not as one of six


def study(diverged=(), metric=METRIC, **differences):
    """Summarize given differences to convolution alone; the others are not significant.

    Args:
        diverged: names of variants.
        metric: that the differences are of.
        differences: by comparison, or comparison and mixer, with underscores for dashes.
    """
    variants = [StudyVariant("conv", "convolution alone", False, ("removed", "matched"), {}, 1, 1)]
    variants += [
        StudyVariant(f"{place}-ssm-{order}", f"SSM ({order})", True, (place,), {}, 1, 1)
        for place in ("removed", "matched")
        for order in ORDERS
    ]
    scores = {"conv": CONV}
    for variant in variants[1:]:
        named = [differences.get(key.replace("-", "_")) for key in (variant.name, variant.comparisons[0])]
        values = next(filter(None, named), ALIKE)
        scores[variant.name] = [base + value for base, value in zip(CONV, values, strict=True)]
    outcomes = {name: [Outcome(value, 9, (1.0,)) for value in values] for name, values in scores.items()}
    memory = dict.fromkeys(scores, 1)
    left_out = {name: Divergence(1, "step 3 has loss nan") for name in diverged}
    return summarize(variants, outcomes, memory, 10.0, left_out, metric)


def test_the_detectable_effect_is_corrected_for_all_tests():
    answer = study(removed_ssm_cross=[2.0, -2.0, 0.0])["answer"]
    bound = minimum_detectable_effect([2.0, -2.0, 0.0], tests=6)
    assert answer == (
        "No SSM is significantly better than convolution alone. This does not show that an SSM does not help: with 6 "
        f"tests, the minimum detectable effect is {bound:.2f} points."
    )
    table = study(removed_ssm_cross=[2.0, -2.0, 0.0])["comparisons"][0]["differences"][2]["minimum_detectable_effect"]
    assert bound > 2 * table == 2 * minimum_detectable_effect([2.0, -2.0, 0.0])


def test_repeats_that_cannot_detect_any_difference_of_percentages_are_reported():
    found = study(removed_ssm_cross=[60.0, -60.0, 0.0])
    assert found["answer"].endswith("3 repeats cannot detect any difference; use more seeds.")
    row = comparison_rows(found, found["comparisons"][0])[3]
    assert "> 100" in row
    assert "\N{MINUS SIGN}100.00 to +100.00" in row


def test_significance_in_a_single_test_is_mentioned():
    found = study(removed_ssm_causal=ABOVE, matched_ssm_causal=OWN)
    assert found["significant_after_holm"] == ["removed-ssm-causal"]
    assert found["answer"] == (
        "Better than convolution alone at equal widths: SSM (causal). At equal parameters, none is significant after "
        "correction for 6 tests. An SSM that is better only in the tables below is significant in a single test, but "
        "not after correction for 6 tests."
    )
    assert found["comparisons"][1]["verdict"].startswith("Better than convolution alone: SSM (causal).")


def test_both_comparisons_are_in_the_answer():
    answer = study(removed=ABOVE, matched_ssm_cross=ABOVE)["answer"]
    assert answer == (
        "Better than convolution alone at equal parameters: SSM (cross); at equal widths: SSM (causal), SSM "
        "(bidirectional), SSM (cross)."
    )


def test_an_answer_where_all_are_worse_has_no_detectable_effect():
    titles = "SSM (causal), SSM (bidirectional), SSM (cross)"
    assert study(removed=BELOW, matched=BELOW)["answer"] == (
        f"Worse than convolution alone at equal parameters: {titles}; at equal widths: {titles}."
    )


def test_the_detectable_effect_is_of_variants_that_are_not_significant():
    wide = [-28.0, -30.0, -32.0]
    answer = study(removed=BELOW, matched_ssm_causal=wide)["answer"]
    bound = minimum_detectable_effect(ALIKE, tests=6)
    assert answer.startswith("No SSM is significantly better than convolution alone. Worse than ")
    assert "at equal parameters: SSM (causal); at equal widths: SSM (causal), SSM (b" in answer
    assert answer.endswith(
        f"the others do not help: with 6 tests, the minimum detectable effect is {bound:.2f} points."
    )


def test_a_worse_variant_in_a_single_test_is_mentioned():
    answer = study(matched_ssm_causal=[-value for value in OWN], removed_ssm_cross=OWN)["answer"]
    assert "An SSM that is better or worse only in the tables below is significant in a single test" in answer
    assert "Worse than convolution" not in answer


def test_a_diverged_variant_is_excluded_and_named():
    found = study(diverged=["matched-ssm-cross"], matched_ssm_causal=OWN)
    assert [variant["name"] for variant in found["variants"]] == [
        "conv", "removed-ssm-causal", "removed-ssm-bidirectional", "removed-ssm-cross", "matched-ssm-causal",
        "matched-ssm-bidirectional",
    ]  # fmt: skip
    removed, matched = found["comparisons"]
    assert [difference["variant"] for difference in matched["differences"]] == [
        "matched-ssm-causal", "matched-ssm-bidirectional",
    ]  # fmt: skip
    assert matched["verdict"].endswith(" Excluded because a run diverged: SSM (cross) (repeat 1).")
    assert "diverged" not in removed["verdict"]
    assert "with 5 tests" in found["answer"]
    assert found["answer"].endswith(" Excluded because a run diverged: SSM (cross) at equal parameters.")
    assert found["diverged"] == [
        {
            "variant": "matched-ssm-cross", "title": "SSM (cross)", "comparisons": ["matched"], "repeat": 1,
            "reason": "step 3 has loss nan", "model": {}, "has_ssm": True,
        }
    ]  # fmt: skip


@pytest.mark.parametrize("size", ["matched", "removed"])
def test_diverged_ssms_are_not_in_the_answer(size):
    every = [f"{place}-ssm-{order}" for place in ("removed", "matched") for order in ORDERS]
    assert study(diverged=every)["answer"] == "Every SSM diverged, so the study has no answer."
    answer = study(diverged=[name for name in every if name.startswith(size)])["answer"]
    assert answer.startswith("No SSM is significantly better")
    assert "with 3 tests" in answer


def test_lower_is_better_for_a_metric_that_falls():
    loss = Metric("loss", "loss", higher_is_better=False)
    found = study(metric=loss, removed_ssm_causal=[-value for value in ABOVE], matched_ssm_causal=BELOW)
    assert found["answer"].startswith("No variant is significantly better than the majority baseline of 10.00 with 3 ")
    assert [comparison["verdict"].split(". ")[0] for comparison in found["comparisons"]] == [
        "Better than convolution alone: SSM (causal)"
    ] * 2
    worse = study(metric=loss, removed_ssm_causal=ABOVE)["comparisons"][0]
    assert worse["verdict"].startswith("Worse than convolution alone: SSM (causal).")
    assert worse["differences"][0]["improves"] is False


def test_a_comparison_without_variants_is_not_shown():
    variants = [
        StudyVariant("conv", "convolution alone", False, ("removed", "matched"), {}, 1, 1),
        StudyVariant("matched-ssm-causal", "SSM (causal)", True, ("matched",), {}, 1, 1),
    ]
    outcomes = {variant.name: [Outcome(value, 9, (1.0,)) for value in CONV] for variant in variants}
    found = summarize(variants, outcomes, dict.fromkeys(outcomes, 1), 10.0, {}, METRIC)
    assert [comparison["name"] for comparison in found["comparisons"]] == ["matched"]
