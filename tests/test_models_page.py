"""docs/models.md has every registered variant."""

import sys

import pytest

from tests.test_layering import ROOT


def test_the_tables_of_the_page_are_those_of_the_registry(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import write_model_tables

    page = write_model_tables.PAGE.read_text(encoding="utf-8")
    assert write_model_tables.update(page) == page, "run: python docs/write_model_tables.py"
    sys.modules.pop("write_model_tables")
