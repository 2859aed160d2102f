"""The mutants of `benchmarks/mutants.py` can be applied: their text occurs once in the source."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MUTANTS = runpy.run_path(str(ROOT / "benchmarks/mutants.py"))["MUTANTS"]


@pytest.mark.parametrize("name", MUTANTS)
def test_the_text_that_a_mutant_replaces_occurs_once(name):
    mutant = MUTANTS[name]
    assert (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.old) == 1
