"""Run docs/tour.ipynb and replace its outputs: python docs/run_notebook.py. An argument is another file to write.

This needs pip install -e ".[train,export]" nbclient ipykernel.
"""

import copy
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

PAGE = Path(__file__).parent / "tour.ipynb"


def run(notebook: nbformat.NotebookNode, folder: str) -> nbformat.NotebookNode:
    """Return the notebook with the outputs of its cells, run in a folder, whose path is left out of them.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised an exception, or a command failed.
    """
    notebook = copy.deepcopy(notebook)
    resources = {"metadata": {"path": folder}}
    NotebookClient(
        notebook, timeout=None, kernel_name="python3", record_timing=False, coalesce_streams=True, resources=resources
    ).execute()
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.clear()
        if cell.cell_type == "code":
            cell.outputs = [_without(output, f"{folder}/") for output in cell.outputs]
    return notebook


def _without(value: Any, text: str) -> Any:
    """Return an output without a text in any of its strings."""
    if isinstance(value, dict):
        return nbformat.from_dict({key: _without(item, text) for key, item in value.items()})
    return value.replace(text, "") if isinstance(value, str) else value


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        executed = run(nbformat.read(PAGE, 4), str(Path(folder).resolve()))
    nbformat.write(executed, sys.argv[1] if sys.argv[1:] else PAGE)
