"""A config that names something unknown ends main.py with one sentence and exit code 2, and leaves nothing behind."""

import re
import subprocess
import sys

import pytest

from tests.study.study_runs import ROOT
from tests.train import tiny

CONFIG = """
import runpy

def get_config():
    config = runpy.run_path({digits!r})["get_config"]()
    config.{line}
    return config
"""


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("task = 'clasification'", r"'clasification' is not a known task; did you mean 'classification'\? Known are "),
        ("model.name = 'mambaout_femo'", r".*'mambaout_femo' is not a known model.* did you mean 'mambaout_femto'"),
        ("model.embed_dim = 96", r".*'embed_dim' is not a known option of mambaout_femto.* Known are .*depths, dims, "),
    ],
)
def test_an_unknown_name_is_one_sentence_with_the_known_ones(tmp_path, line, sentence):
    file, workdir = tmp_path / "config.py", tmp_path / "run"
    file.write_text(CONFIG.format(digits=str(tiny.DIGITS), line=line))
    command = [sys.executable, str(ROOT / "main.py"), f"--config={file}", f"--workdir={workdir}"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=ROOT)
    assert ended.returncode == 2, ended.stderr
    assert not ended.stdout
    assert ended.stderr.count("\n") == 1
    assert re.match(f"error: {sentence}", ended.stderr), ended.stderr
    assert not workdir.exists()
