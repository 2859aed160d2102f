"""Checks accept what they describe, and refuse everything else in one sentence of the caller's error type."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambaout_jax.checks import (
    ConfigKey,
    Require,
    describe_values,
    expected_one_of,
    find_fault,
    nearest_names,
    parse_text,
    suggest,
)


class NotAllowedError(ValueError):
    pass


require = Require(NotAllowedError)


@given(st.integers(-5, 5))
def test_integers_are_accepted_within_their_range_alone(value):
    key = ConfigKey(int, "-2..3", 0, "a number")
    assert (find_fault("x", key, value) == "") == (-2 <= value <= 3)


@pytest.mark.parametrize("value", [True, "1", float("nan"), float("inf"), -0.1, (0.1,)])
def test_what_is_no_number_of_the_range_is_named_with_what_is_expected(value):
    fault = find_fault("config.rate", ConfigKey(float, "0..", 0.0, "a rate"), value)
    assert fault.startswith("config.rate is ")
    assert fault.endswith("expected a number of at least 0")


@pytest.mark.parametrize(
    ("kind", "value", "dtype"), [(int, 2**31, "int32"), (float, 1e39, "float32"), (float, 10**400, "float32")]
)
def test_numbers_that_a_program_cannot_hold_are_refused(kind, value, dtype):
    assert find_fault("x", ConfigKey(kind, "1..", 1, "a number"), value).endswith(f"at least 1 that fits into {dtype}")
    assert not find_fault("x", ConfigKey(int, "0..4294967295", 1, "a seed"), 2**31)


@pytest.mark.parametrize(("value", "fits"), [(True, True), (False, True), (1, False), ("True", False)])
def test_a_switch_is_true_or_false(value, fits):
    fault = find_fault("x", ConfigKey(bool, None, False, "a switch"), value)
    assert fault == ("" if fits else f"x is {value!r}; expected True or False")


def test_unset_is_accepted_where_a_key_is_optional():
    assert find_fault("x", ConfigKey(int | None, "1..", None, "a number"), None) == ""
    required = ConfigKey(int, "1..", None, "a number")
    assert find_fault("x", required, None) == "x is unset; expected an integer of at least 1"
    words = "config.x is unset; set it, for example with --config.x=VALUE (an integer of at least 1)"
    assert find_fault("config.x", required, None) == words


@pytest.mark.parametrize("key", [ConfigKey(str, None, None, "a name"), ConfigKey(str | None, None, None, "a file")])
def test_an_empty_string_is_refused(key):
    assert find_fault("x", key, "file") == ""
    assert find_fault("x", key, "").startswith("x is ''; expected a non-empty string")


@pytest.mark.parametrize(
    ("value", "fits"), [((0.1, 0.5), True), ((0.5, 0.1), False), ((0.0, 0.5), False), ((0.2,), False)]
)
def test_a_pair_rises_from_above_zero(value, fits):
    assert (find_fault("x", ConfigKey(tuple[float, float], "0..1", (0.1, 1.0), "a pair"), value) == "") == fits


@pytest.mark.parametrize("value", ["tests.toy", (1,), ("tests.toy", ""), None])
def test_a_tuple_without_a_range_has_strings(value):
    key = ConfigKey(tuple[str, ...], None, (), "modules")
    assert find_fault("plugins", key, ("tests.toy",)) == ""
    assert find_fault("plugins", key, value).endswith("expected a tuple of non-empty strings")


@pytest.mark.parametrize(
    ("kind", "accept", "words"),
    [
        (str, ("a", "b"), "'a' or 'b'"),
        (str | None, ("a", "b"), "'a' or 'b', or None"),
        (tuple[str, ...], ("a", "b"), "a tuple with any of 'a', 'b'"),
        (str | None, None, "a non-empty string, or None"),
        (int, "1..", "an integer of at least 1"),
        (float, "0..1", "a number from 0 to 1"),
        (float, "0..<1", "a number from 0 to below 1"),
        (float, ">0..", "a number above 0"),
        (float, ">0..2", "a number above 0 and at most 2"),
        (float, "..", "a number"),
        (int | tuple[int, int], "32..64", "an integer or a pair of integers from 32 to 64"),
        (tuple[int, ...], "1..", "a non-empty tuple of integers of at least 1"),
        (tuple[float, float], "0..", "a pair of numbers, 0 < low <= high, of at least 0"),
    ],
)
def test_values_are_described_in_words(kind, accept, words):
    assert describe_values(ConfigKey(kind, accept, None, "")) == words


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (int, "3", 3),
        (float, "5e-4", 5e-4),
        (float | None, "None", None),
        (int, "None", None),
        (bool, "true", True),
        (bool, "False", False),
        (str, "3", "3"),
        (str, "None", None),
        (str | None, "None", None),
        (int | tuple[int, int], "(64, 48)", (64, 48)),
        (int | tuple[int, int], "64,48", (64, 48)),
        (tuple[int, ...], "[1, 2]", (1, 2)),
        (tuple[str, ...], "a.b, c", ("a.b", "c")),
        (tuple[str, ...], "('a.b',)", ("a.b",)),
        (int, "many", "many"),
        (int, "(" * 500, "(" * 500),
        (int, "", ""),
    ],
)
def test_text_of_a_command_line_is_read_by_the_kind_of_the_key(kind, text, value):
    parsed = parse_text(ConfigKey(kind, None, None, ""), text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("check", "words"),
    [
        (lambda: require.counts(d_state=0), r"d_state is 0; expected a positive integer"),
        (lambda: require.counts(dim=True), "dim is True"),
        (lambda: require.ratio("ratio", 0.001, 10), "ratio is 0.001; expected a finite number of at least 1/10"),
        (lambda: require.choice("flag", 1, (True, False)), "flag is 1; expected one of True, False"),
        (lambda: require.at_least("seed", -1, 0), "seed is -1; expected an integer of at least 0"),
    ],
)
def test_arguments_that_do_not_fit_raise_the_error_of_the_caller(check, words):
    with pytest.raises(NotAllowedError, match=words):
        check()


def test_near_names_are_suggested_and_far_ones_are_not():
    assert suggest("mambaut", ["mambaout", "vit"]) == "; did you mean 'mambaout'?"
    assert expected_one_of("mambaut", ["mambaout", "vit"]) == "; did you mean 'mambaout'? Expected one of mambaout, vit"
    assert expected_one_of("resnet", ["mambaout", "vit"]) == "; expected one of mambaout, vit"
    assert suggest("zzz", ["mambaout", "vit"]) == ""
    assert nearest_names("mambaut", ["mambaout", "vit"]) == ["mambaout"]
    assert nearest_names("batch_sise", ["batch_size", "eval_batch_size", "seed"], limit=3)[0] == "batch_size"
    assert len(nearest_names("zzz", ["batch_size", "seed"], limit=3)) == 1
