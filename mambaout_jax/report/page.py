"""Pages as one file each: templates of jinja2, and the one look of them all."""

from importlib import resources
from typing import Any

import jinja2

STYLE = "page.css"  # what a template includes, wherever it lies


def render(package: str, template: str, **values: Any) -> str:
    """Fill in a template that lies in a package; what it names and is not given is an error."""

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
