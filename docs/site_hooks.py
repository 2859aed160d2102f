"""Hooks of MkDocs, which add benchmarks/NOTES.md and docs/tour.ipynb to the pages of the site."""

import json
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

NOTES = "benchmarks/NOTES.md"
NOTEBOOK = "tour.ipynb"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the notes and the notebook to the files of the site."""
    docs = Path(config.docs_dir)
    content = (docs.parent / NOTES).read_text(encoding="utf-8")
    files.append(File.generated(config, "notes.md", content=content.replace("](../docs/", "](")))
    cells = json.loads((docs / NOTEBOOK).read_text(encoding="utf-8"))["cells"]
    title, *others = map(_to_markdown, cells)
    content = "\n\n".join([title, f'Download: <a href="../{NOTEBOOK}" download>{NOTEBOOK}</a>', *others])
    files.append(File.generated(config, "tour.md", content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point links to the notes and the notebook to their pages."""
    return markdown.replace(f"](../{NOTES}", "](notes.md").replace(f"]({NOTEBOOK})", "](tour.md)")


def _to_markdown(cell: dict[str, Any]) -> str:
    """Return a cell of a notebook with its outputs."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return source
    return "\n\n".join([f"```python\n{source}\n```", *map(_output_to_markdown, cell["outputs"])])


def _output_to_markdown(output: dict[str, Any]) -> str:
    data = output.get("data", {"text/plain": output.get("text", "")})
    if "image/png" in data:
        return f"![](data:image/png;base64,{''.join(data['image/png']).strip()})"
    return f"```text\n{''.join(data['text/plain'])}\n```"
