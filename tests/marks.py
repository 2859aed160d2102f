"""Parametrized tests with cases that are too many for the default tier."""

import pytest


def slow_but(quick, cases):
    """Return the cases of a parametrized test, all but the quick ones marked for the tier `run`."""
    missing = [case for case in quick if case not in cases]
    assert not missing, f"no such cases: {missing}"
    return [case if case in quick else pytest.param(case, marks=pytest.mark.run) for case in cases]
