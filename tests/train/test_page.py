"""All pages have the same style, and a missing value is an error."""

from importlib import resources

import jinja2
import pytest

from mambaout_jax.pages.render import STYLE, render

TEMPLATES = [
    (package, file.name)
    for package in ("mambaout_jax.analyze", "mambaout_jax.report", "mambaout_jax.study")
    for file in resources.files(package).iterdir()
    if file.name.endswith(".jinja")
]


def test_every_page_has_the_same_style():
    assert len(TEMPLATES) == 3
    for package, template in TEMPLATES:
        text = resources.files(package).joinpath(template).read_text(encoding="utf-8")
        assert f'<style>\n{{% include "{STYLE}" +%}}\n' in text, template


@pytest.mark.parametrize(("package", "template"), TEMPLATES)
def test_a_page_that_lacks_a_value_is_an_error(package, template):
    with pytest.raises(jinja2.UndefinedError):
        render(package, template)


def test_style_is_taken_as_it_is_and_values_are_escaped(monkeypatch, tmp_path):
    folder = tmp_path / "pages_of_a_test"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "page.jinja").write_text('<style>\n{% include "page.css" +%}\n</style>{{ word }}')
    monkeypatch.syspath_prepend(tmp_path)
    style = resources.files("mambaout_jax.pages").joinpath(STYLE).read_text(encoding="utf-8")
    assert render("pages_of_a_test", "page.jinja", word="<b>").split("</style>") == [f"<style>\n{style}", "&lt;b&gt;"]
