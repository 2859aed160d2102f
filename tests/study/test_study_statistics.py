"""Intervals and detectable differences are those of the formulas, by hand and by scipy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mambaout_jax.study.statistics import (
    holm,
    interval,
    is_significant,
    minimum_detectable_effect,
    p_value,
    standard_error,
)

VALUES = st.lists(st.integers(0, 10_000).map(lambda n: n / 100), min_size=2, max_size=12)


def test_interval_is_the_one_computed_by_hand():
    # Of 90, 92 and 97: mean 93, variance (9 + 1 + 16) / 2 = 13; 1/3 + 1/2 = 5/6; t of 97.5 % with 2 degrees 4.30265.
    half = 4.302653 * math.sqrt(13 * 5 / 6)
    assert standard_error([90, 92, 97]) == pytest.approx(math.sqrt(13 * 5 / 6))
    assert interval([90, 92, 97]) == pytest.approx((93, 93 - half, 93 + half), rel=1e-6)


def test_detectable_difference_is_the_one_computed_by_hand():
    # t of 97.5 % with 2 degrees 4.302653, of 80 % 1.060660.
    assert minimum_detectable_effect([1, 2, 6]) == pytest.approx((4.302653 + 1.060660) * math.sqrt(7 * 5 / 6), rel=1e-6)
    # The first of six tests is at the level 1 - 0.05 / 12: 10.885867.
    assert minimum_detectable_effect([1, 2, 6], tests=6) == pytest.approx(
        (10.885867 + 1.060660) * math.sqrt(7 * 5 / 6), rel=1e-6
    )


@given(VALUES)
def test_interval_is_scipys_but_for_what_folds_share(values):
    n = len(values)
    wider = math.sqrt(1 + n / (n - 1))
    low, high = stats.t.interval(0.95, n - 1, loc=np.mean(values), scale=np.std(values, ddof=1) / math.sqrt(n) + 1e-300)
    mean = interval(values).mean
    assert mean == pytest.approx(np.mean(values))
    assert interval(values).low == pytest.approx(mean - wider * (mean - low), abs=1e-9)
    assert interval(values).high == pytest.approx(mean + wider * (high - mean), abs=1e-9)


@given(VALUES.filter(lambda values: len(set(values)) > 1))
def test_a_detectable_difference_lies_outside_the_interval_around_none(values):
    mean, low, _ = interval(values)
    assert minimum_detectable_effect(values) >= mean - low


@pytest.mark.parametrize("tests", [1, 6])
def test_a_study_of_independent_repeats_shows_the_detectable_difference_four_times_in_five(tests):
    n, studies = 8, 4000
    rng = np.random.default_rng(0)
    # Independent repeats have a standard error of 1 / sqrt(n); that of folds is corrected for shared images.
    effect = minimum_detectable_effect([*[-1.0] * (n // 2), *[1.0] * (n // 2)], tests) * math.sqrt((n - 1) / n)
    values = effect + rng.normal(0, math.sqrt(1 / (n - 1)), (studies, 1)) + rng.normal(0, 1, (studies, n))
    # As in Holm's procedure if the other tests are not significant.
    t = values.mean(1) / (values.std(1, ddof=1) * math.sqrt(1 / n + 1 / (n - 1)))
    shown = np.mean([holm([p, *[1.0] * (tests - 1)])[0] for p in 2 * stats.t.sf(t, n - 1)])
    assert shown == pytest.approx(0.8, abs=0.04)


@pytest.mark.slow
def test_a_study_finds_a_difference_where_there_is_none_once_in_twenty():
    n, studies = 3, 4000
    rng = np.random.default_rng(1)
    shared = rng.normal(0, math.sqrt(1 / (n - 1)), (studies, 1))
    found = [is_significant(row) for row in (shared + rng.normal(0, 1, (studies, n))).tolist()]
    assert np.mean(found) == pytest.approx(0.05, abs=0.012)


@pytest.mark.parametrize(
    ("differences", "significant"),
    [
        ([1.0, 1.1, 0.9], True),
        ([-1.0, -1.1, -0.9], True),
        ([1.0, 0.0, 3.0], False),
        ([1.0, 1.0], False),
        ([0.3, 0.1 + 0.2], False),
    ],
)
def test_a_difference_is_significant_if_its_interval_excludes_zero(differences, significant):
    assert is_significant(differences) == significant


@pytest.mark.parametrize("differences", [[1.0, 1.0], [0.0, 0.0, 0.0], [0.3, 0.1 + 0.2]])
def test_without_spread_nothing_can_be_judged(differences):
    assert minimum_detectable_effect(differences) is None
    assert p_value(differences) == 1


@given(VALUES.filter(lambda values: len(set(values)) > 1))
def test_p_is_small_where_the_interval_leaves_zero_out(values):
    differences = [value - 50 for value in values]
    assert (p_value(differences) < 0.05) == is_significant(differences)
    assert p_value(differences) == pytest.approx(p_value([-difference for difference in differences]))


def test_p_is_the_one_computed_by_hand():
    # With 1 degree of freedom P(|T| > t) is 1 - 2 atan(t) / pi; mean 3, sd sqrt(2), 1/2 + 1/1.
    assert p_value([2, 4]) == pytest.approx(1 - 2 * math.atan(3 / math.sqrt(2 * 1.5)) / math.pi)


@pytest.mark.parametrize(
    ("p_values", "holding"),
    [
        ([0.01, 0.02, 0.04], [True, True, True]),
        ([0.04, 0.01, 0.02], [True, True, True]),
        ([0.01, 0.03, 0.03], [True, False, False]),  # 0.03 > 0.05 / 2, so the last one is not tested
        ([0.02, 0.02, 0.02], [False, False, False]),
        ([0.06], [False]),
        ([], []),
    ],
)
def test_holm_stops_at_the_first_that_does_not_hold(p_values, holding):
    assert holm(p_values) == holding
