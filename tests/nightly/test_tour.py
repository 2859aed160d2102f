"""docs/tour.ipynb runs, and gives the kinds of outputs that it is committed with."""

import json
import sys

import pytest

from tests.nightly.test_scripts import ROOT, run

pytestmark = pytest.mark.nightly


def kinds(path):
    """Return the kinds of outputs of each cell: streams, tables, pictures."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return {
        cell["id"]: [sorted(output.get("data", [output.get("name")])) for output in cell["outputs"]]
        for cell in cells
        if cell["cell_type"] == "code"
    }


def test_the_notebook_runs_and_has_the_outputs_of_its_file(tmp_path):
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    run(sys.executable, "docs/run_notebook.py", str(tmp_path / "tour.ipynb"))
    assert kinds(tmp_path / "tour.ipynb") == kinds(ROOT / "docs" / "tour.ipynb")
    assert "error: " not in (tmp_path / "tour.ipynb").read_text(encoding="utf-8")
