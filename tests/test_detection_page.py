"""The program in docs/detection.md runs, and its commands name what there is."""

import re
import shlex

import pytest

from mambaout_jax.run.config_file import read_config
from tests.test_layering import ROOT

PAGE = (ROOT / "docs" / "detection.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.nightly
def test_the_program_of_the_page_runs():
    (program,) = (text for kind, text in BLOCKS if kind == "python")
    scope: dict = {}
    exec(compile(program, "detection.md", "exec"), scope)
    assert scope["found"].boxes.shape == (1, 100, 4)


def test_every_experiment_of_the_page_is_read():
    lines = [shlex.split(line, comments=True) for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
    files = [word.removeprefix("--config=") for words in lines for word in words if word.startswith("--config=")]
    assert len(files) == 2
    for file in files:
        assert read_config(str(ROOT / file), []).task.name == "detection"
