"""Hooks of MkDocs, which add benchmarks/NOTES.md to the pages of the site."""

from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

NOTES = "benchmarks/NOTES.md"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the notes to the files of the site."""
    content = (Path(config.docs_dir).parent / NOTES).read_text(encoding="utf-8")
    files.append(File.generated(config, "notes.md", content=content.replace("](../docs/", "](")))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point links to the notes to their page."""
    return markdown.replace(f"](../{NOTES}", "](notes.md")
