"""Pages as one file each: jinja2 templates with one style sheet."""

from importlib import resources
from typing import Any

import jinja2

STYLE = "page.css"  # a template of any package includes it by this name


def render(package: str, template: str, **values: Any) -> str:
    """Fill in a template of a package; a value that the template names and that is not given is an error."""

    def load(name: str) -> str:
        home = resources.files(__package__ if name == STYLE else package)
        return home.joinpath(name).read_text(encoding="utf-8")

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(load),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(values)
