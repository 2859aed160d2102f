"""What repeats over the folds of a cross-validation can tell: intervals, and the differences that they could show."""

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from scipy import stats

CONFIDENCE = 0.95
POWER = 0.8


class Interval(NamedTuple):
    """Hold a mean with the bounds of its 95 % interval."""

    mean: float
    low: float
    high: float


def standard_error(values: Sequence[float]) -> float:
    """Estimate how far the mean over the folds may be off: sd sqrt(1/n + 1/(n - 1)).

    Any two repeats share training images, so that they differ less than independent ones would; the second term, test
    images over training images, makes up for it.

    Args:
        values: one for each of all n folds, two or more.

    Reference: Nadeau and Bengio, Inference for the Generalization Error, Machine Learning 52, 2003, section 3.
    """
    n = len(values)
    return statistics.stdev(values) * math.sqrt(1 / n + 1 / (n - 1))


def interval(values: Sequence[float]) -> Interval:
    """Give the mean over the folds with its 95 % interval by Student's t, n - 1 degrees of freedom."""
    mean = statistics.fmean(values)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1).item() * standard_error(values)
    return Interval(mean, mean - half, mean + half)


def has_spread(values: Sequence[float]) -> bool:
    """Tell whether values differ by more than rounding."""
    return statistics.stdev(values) > 1e-9


def detectable_difference(differences: Sequence[float], tests: int = 1) -> float | None:
    """Give the smallest true difference that a study like this tells apart from none four times in five.

    (t of 1 - alpha / 2 m + t of power) times the standard error of the paired differences, alpha = 5 %, power = 80 %,
    n - 1 degrees of freedom.

    Args:
        tests: m, among which the difference has to hold by `holm` where no other one does.

    Reference: Bloom, Minimum Detectable Effects, Evaluation Review 19, 1995. By a non-central t, which it stands for,
    the figure is larger: for one test by 16 % of 2 repeats, 5 % of 3, 2 % of 4; for six by 26, 16 and 10 %.

    Returns:
        None where the differences are all the same, with no spread to judge by.
    """
    if not has_spread(differences):
        return None
    quantiles = stats.t.ppf([1 - (1 - CONFIDENCE) / 2 / tests, POWER], len(differences) - 1)
    return quantiles.sum().item() * standard_error(differences)


def compare(differences: Sequence[float]) -> int:
    """Judge paired differences: 1 and -1 where they are told apart from none at 95 %, else 0.

    Differences that are all the same have no spread to be judged by, and tell nothing apart.
    """
    if not has_spread(differences):
        return 0
    _, low, high = interval(differences)
    return 1 if low > 0 else -1 if high < 0 else 0


def p_value(differences: Sequence[float]) -> float:
    """Give the two-sided p of paired differences by the same t; 1 where they have no spread."""
    if not has_spread(differences):
        return 1.0
    t = abs(statistics.fmean(differences)) / standard_error(differences)
    return 2 * stats.t.sf(t, len(differences) - 1).item()


def holm(p_values: Sequence[float]) -> list[bool]:
    """Tell which of several tests hold together, so that any wrong one is among them in at most 5 of 100 studies.

    The smallest of m has to be at most alpha / m, the next alpha / (m - 1), and so on up to the first that is not.

    Reference: Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scand. J. Statist. 6, 1979.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    held = itertools.takewhile(
        lambda place: p_values[place[1]] * (len(order) - place[0]) <= 1 - CONFIDENCE, enumerate(order)
    )
    holding = {test for _, test in held}
    return [test in holding for test in range(len(p_values))]
