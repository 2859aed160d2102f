"""The program in docs/segmentation.md runs, and its commands name what there is."""

import re
import shlex

import pytest

from mambaout_jax.run.config_file import read_config
from tests.test_layering import ROOT

PAGE = (ROOT / "docs" / "segmentation.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_program_of_the_page_runs():
    (program,) = (text for kind, text in BLOCKS if kind == "python")
    scope: dict = {}
    exec(compile(program, "segmentation.md", "exec"), scope)
    assert scope["logits"].shape == (1, 96, 128, 150)


def test_every_experiment_of_the_page_is_read():
    lines = [shlex.split(line, comments=True) for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
    experiments = [line for line in lines if line[:2] == ["python", "main.py"]]
    assert len(experiments) == 2
    for line in experiments:
        flags = {name: value for name, _, value in (flag.removeprefix("--").partition("=") for flag in line[2:])}
        changes = [f"--{name}={value}" for name, value in flags.items() if name.startswith("config.")]
        assert read_config(str(ROOT / flags["config"]), changes).task.name == "segmentation"


def test_links_of_the_page_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
