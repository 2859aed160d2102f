"""docs/models.md and the README have every registered variant."""

import sys

import pytest
from PIL import Image

from tests.test_layering import ROOT


@pytest.mark.parametrize(("file", "update"), [("PAGE", "update"), ("README", "update_readme")])
def test_the_tables_of_a_page_are_those_of_the_registry(file, update, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import write_model_tables

    page = getattr(write_model_tables, file).read_text(encoding="utf-8")
    assert getattr(write_model_tables, update)(page) == page, "run: python docs/write_model_tables.py"
    sys.modules.pop("write_model_tables")


def test_the_figure_of_the_readme_has_the_accuracy_of_the_registry(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import draw_accuracy

    with Image.open(draw_accuracy.FIGURE) as figure:
        assert figure.text["Comment"] == draw_accuracy.content(), "run: python docs/draw_accuracy.py"
    sys.modules.pop("draw_accuracy")
