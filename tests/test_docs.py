"""The commands and programs in the documentation name what exists; tests of their pages run many of them."""

import ast
import importlib
import re
import shlex

import pytest

import mambaout_jax as mo
import mambaout_jax.__main__ as command_line
from mambaout_jax.extras import MissingExtraError
from mambaout_jax.run.config_file import read_config
from tests.test_layering import ROOT

PAGES = {
    path.name: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", flags=re.MULTILINE | re.DOTALL)


def blocks(page, *kinds):
    return [text for _, kind, text in BLOCK.findall(PAGES[page]) if kind in kinds]


def find_commands():
    """Yield page and arguments of each command of this package in the blocks of a shell."""
    for page in PAGES:
        for text in blocks(page, "", "sh", "bash"):
            for line in text.replace("\\\n", " ").splitlines():
                if not re.search(r"(^|-m |&& )mambaout_jax |python main\.py ", line):
                    continue
                lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
                lexer.whitespace_split = True
                words = list(lexer)
                starts = [index for index, word in enumerate(words) if not set(word) - set("&|;")]
                for start, end in zip([-1, *starts], [*starts, len(words)], strict=True):
                    yield from ((page, command) for command in arguments(words[start + 1 : end]))


def arguments(words):
    """Yield the arguments of a command of this package."""
    if words[:3] == ["python", "-m", "mambaout_jax"]:
        yield words[3:]
    elif words[:1] == ["mambaout_jax"]:
        yield words[1:]
    elif words[:2] == ["python", "main.py"]:
        mode = "evaluate" if "--mode=evaluate" in words else "train"
        yield [mode, *(word for word in words[2:] if not word.startswith("--mode="))]


COMMANDS = sorted({(page, *words) for page, words in find_commands()})


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_of_the_documentation_has_existing_options_and_keys(command, monkeypatch, capsys):
    _page, name, *rest = command
    # The config of a run that the page trains before.
    rest = [word.replace("runs/ade20k/config.json", "configs/ade20k.py:mambaout_tiny") for word in rest]
    parsed = []
    module = importlib.import_module(f"mambaout_jax.cli.{name.replace('-', '_')}")
    monkeypatch.setattr(module, "run", lambda args: parsed.append(args) or 0)
    monkeypatch.chdir(ROOT)
    try:
        code = command_line.main([name, *rest])
    except SystemExit as error:
        code = error.code or 0
    assert code == 0, capsys.readouterr().err
    config = getattr(parsed[0], "config", None) if parsed else None  # --version and --help parse nothing
    if config is not None:
        read_config(config, parsed[0].config_changes)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python", "py")])
def test_programs_of_the_documentation_import_and_use_what_exists(page):
    for text in blocks(page, "python", "py"):
        for node in ast.walk(ast.parse(re.sub(r"^ {4}", "", text) if text.startswith("    ") else text)):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in ("mambaout_jax", "configs", "tests"):
                try:
                    module = importlib.import_module(node.module)
                except MissingExtraError:
                    continue
                assert all(hasattr(module, name.name) for name in node.names), ast.unparse(node)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "mo":
                assert hasattr(mo, node.attr), ast.unparse(node)


def test_messages_of_the_troubleshooting_page_are_those_of_the_package():
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "mambaout_jax").rglob("*.py")]
    texts = [text for source in sources for text in find_texts(ast.parse(source))]
    messages = re.findall(r"^\| (.*?) \|", PAGES["troubleshooting.md"], flags=re.MULTILINE)
    quoted = [quote for message in messages for quote in re.findall(r"`([^`]*)`", message) if " " in quote]
    assert len(quoted) > 20
    for quote in quoted:
        parts = [re.escape(part) for part in quote.split("...")]
        assert any(re.search(".*".join(parts), text) for text in texts), quote


def find_texts(tree):
    """Yield the texts of a module; values that are filled in are empty braces."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
