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
    lines = [line for kind, text in BLOCKS if kind == "sh" for line in text.replace("\\\n", "").splitlines()]
    experiments = [words for words in (shlex.split(line, comments=True) for line in lines) if has_config(words)]
    assert len(experiments) == 6
    for words in experiments:
        flags = dict(word.removeprefix("--").split("=", 1) for word in words if word.startswith("--") and "=" in word)
        changes = [f"--{name}={value}" for name, value in flags.items() if name.startswith("config.")]
        # A run has the config of its experiment.
        file = flags["config"].replace("runs/ade20k/config.json", "configs/ade20k.py")
        assert read_config(str(ROOT / file), changes).task.name == "segmentation"


def has_config(words):
    return any(word.startswith("--config=") for word in words)


def test_links_of_the_page_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
