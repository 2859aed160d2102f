"""Checks accept what they describe, and refuse everything else in one sentence of the caller's error type."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambaout_jax.checks import Key, Require, describe_values, find_fault, nearest, suggest


class NotAllowedError(ValueError):
    pass


require = Require(NotAllowedError)


@given(st.integers(-5, 5))
def test_integers_are_accepted_within_their_range_alone(value):
    key = Key(int, "-2..3", "a number")
    assert (find_fault("x", key, value) == "") == (-2 <= value <= 3)


@pytest.mark.parametrize("value", [True, "1", float("nan"), float("inf"), -0.1, None, (0.1,)])
def test_what_is_no_number_of_the_range_is_named_with_what_is_expected(value):
    fault = find_fault("config.rate", Key(float, "0..", "a rate"), value)
    assert fault.startswith("config.rate is ")
    assert fault.endswith("a number of 0 or more is expected")


@pytest.mark.parametrize(("value", "fits"), [(True, True), (False, True), (1, False), ("True", False)])
def test_a_switch_is_true_or_false(value, fits):
    fault = find_fault("x", Key(bool, None, "a switch"), value)
    assert fault == ("" if fits else f"x is {value!r}; True or False is expected")


def test_unset_is_accepted_where_a_key_is_optional():
    assert find_fault("x", Key(int, "1..", "a number", optional=True), None) == ""


@pytest.mark.parametrize(
    ("value", "fits"), [((0.1, 0.5), True), ((0.5, 0.1), False), ((0.0, 0.5), False), ((0.2,), False)]
)
def test_a_pair_rises_from_above_zero(value, fits):
    assert (find_fault("x", Key(tuple, "0..1", "a pair"), value) == "") == fits


@pytest.mark.parametrize("value", ["tests.toy", (1,), None])
def test_a_tuple_without_a_range_has_strings(value):
    key = Key(tuple, None, "modules")
    assert find_fault("plugins", key, ("tests.toy",)) == ""
    assert find_fault("plugins", key, value).endswith("a tuple of strings is expected")


def test_values_are_described_in_words():
    assert describe_values(Key(str, ("a", "b"), "")) == "'a' or 'b'"
    assert describe_values(Key(int, "1..", "")) == "an integer of 1 or more"
    assert describe_values(Key(float, "0..1", "")) == "a number of 0 to 1"
    assert describe_values(Key(float, "0..<1", "")) == "a number of 0 up to, not including, 1"


@pytest.mark.parametrize(
    ("check", "words"),
    [
        (lambda: require.counts(depths=(1, 0)), r"depths is \(1, 0\); whole numbers"),
        (lambda: require.counts(dim=True), "dim is True"),
        (lambda: require.rates(drop=1.0), "drop is 1.0; a probability"),
        (lambda: require.ratio("ratio", 0.001, 10), "ratio is 0.001; a number that leaves a channel of 10"),
        (lambda: require.choice("flag", 1, (True, False)), "flag is 1; expected one of True, False"),
        (lambda: require.at_least("seed", -1, 0), "seed is -1; expected an integer of at least 0"),
    ],
)
def test_arguments_that_do_not_fit_raise_the_error_of_the_caller(check, words):
    with pytest.raises(NotAllowedError, match=words):
        check()


def test_near_names_are_suggested_and_far_ones_are_not():
    assert suggest("mambaut", ["mambaout", "vit"]) == "; did you mean 'mambaout'?"
    assert suggest("zzz", ["mambaout", "vit"]) == ""
    assert nearest("zzz", ["mambaout", "vit"]) in ("mambaout", "vit")
