"""Mark the cases of a law that the newest Python need not see again."""

import pytest


def slow_but(quick, cases):
    """Give the cases of a parametrised test, all but the quick ones marked as slow."""
    missing = [case for case in quick if case not in cases]
    assert not missing, f"no such cases: {missing}"
    return [case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in cases]
