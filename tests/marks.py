"""Parametrized tests with cases that are too many for the default tier."""

import pytest


def slow_but(quick, cases, tier="slow"):
    """Return the cases of a parametrized test, all but the quick ones marked for a later tier."""
    missing = [case for case in quick if case not in cases]
    assert not missing, f"no such cases: {missing}"
    mark = getattr(pytest.mark, tier)
    return [
        case if case in quick else pytest.param(*(case if isinstance(case, tuple) else [case]), marks=mark)
        for case in cases
    ]
