"""docs/tour.ipynb: its commands and links exist, and its outputs are those of one run, without errors."""

import argparse
import ast
import importlib
import json
import re
import shlex

import pytest

from mambaout_jax.__main__ import COMMANDS
from mambaout_jax.run.config_file import read_config
from mambaout_jax.study.study import find_experiment
from tests.test_layering import ROOT

FILE = ROOT / "docs" / "tour.ipynb"
NOTEBOOK = json.loads(FILE.read_text(encoding="utf-8"))
CELLS = NOTEBOOK["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]
COMMAND = re.compile(r"python -m mambaout_jax ([^`\n]+)")


def source_of(cell):
    return "".join(cell["source"])


def text_of(output):
    """Return the text of an output, without its images."""
    data = output.get("data", {"text/plain": output.get("text", "")})
    return "".join("".join(lines) for kind, lines in data.items() if not kind.startswith("image/"))


def commands():
    """Return the arguments of every command, in cells and in the text."""
    text = "\n".join(source_of(cell).replace("\\\n", "") for cell in CELLS)
    return [shlex.split(re.sub(r" 2>.*", "", found)) for found in COMMAND.findall(text)]


def test_the_file_is_a_small_notebook_of_format_4():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in CELLS}) == len(CELLS)
    assert {key for cell in CODE for key in cell} == {
        "cell_type", "execution_count", "id", "metadata", "outputs", "source"
    }  # fmt: skip
    assert FILE.stat().st_size < 250_000


@pytest.mark.parametrize("cell", CODE, ids=[cell["id"] for cell in CODE])
def test_every_cell_is_python_or_runs_commands_of_this_package(cell):
    first, *lines = source_of(cell).replace("\\\n", "").splitlines()
    if first.startswith("%%bash"):  # -e, or only the exit code of the last command would count
        assert first.endswith(" -e") or len(lines) == 1
        assert all(COMMAND.match(line) for line in lines)
    else:
        assert ast.parse(re.sub(r"^(\s+)%pip .*$", r"\1pass", source_of(cell), flags=re.MULTILINE)).body


def test_every_command_has_its_arguments_and_its_experiment():
    named = commands()
    assert {name for name, *_ in named} == {"analyze", "export", "prepare", "study", "train"}
    for name, *arguments in named:
        assert name in COMMANDS
        changes = [argument for argument in arguments if argument.startswith("--config.")]
        parser = argparse.ArgumentParser(exit_on_error=False)
        parser.add_argument("--config")
        importlib.import_module(f"mambaout_jax.cli.{name}").add_arguments(parser)
        args = parser.parse_args([argument for argument in arguments if argument not in changes])
        if name == "study":
            args.config = find_experiment(args.dataset, "classification")
        if args.config:
            read_config(args.config, changes)


def test_every_name_after_mo_is_public():
    import mambaout_jax as mo

    assert {*re.findall(r"\bmo\.(\w+)", "\n".join(map(source_of, CODE)))} <= {*mo.__all__}


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)", "\n".join(map(source_of, CELLS))):
        assert (ROOT / "docs" / target).exists(), target


def test_outputs_are_those_of_one_run_from_top_to_bottom():
    assert [cell["execution_count"] for cell in CODE] == [*range(1, len(CODE) + 1)], "run: python docs/run_notebook.py"
    assert [cell["id"] for cell in CODE if not cell["outputs"]] == ["install"]
    assert sum("image/png" in output.get("data", {}) for cell in CODE for output in cell["outputs"]) == 5


def test_no_output_is_an_error_or_a_warning():
    for cell in CODE:
        for output in cell["outputs"]:
            assert output["output_type"] in ("stream", "display_data", "execute_result")
            assert not re.search(r"error: |Traceback|Warning|\r", text_of(output))


def test_no_path_of_a_machine_is_in_the_file():
    texts = [source_of(cell) for cell in CELLS] + [text_of(output) for cell in CODE for output in cell["outputs"]]
    for text in texts:
        assert not re.search(r"(?<![\w./:])/(?:\w[\w.-]*/)+\w", text), text
