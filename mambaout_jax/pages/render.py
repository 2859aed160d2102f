"""Self-contained pages: jinja2 templates with one style sheet."""

from importlib import resources
from typing import Any

import jinja2

STYLE = "page.css"  # included under this name by the templates of all packages


def render(package: str, template: str, **values: Any) -> str:
    """Render a template of a package; a missing value is an error."""

    def load(name: str) -> str:
        folder = resources.files(__package__ if name == STYLE else package)
        return folder.joinpath(name).read_text(encoding="utf-8")

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(load),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(values)
