"""Every program in docs/library.md runs, those of the core without any package of an extra."""

import re
import textwrap

import pytest
from PIL import Image

from mambaout_jax import extras
from tests.test_layering import ROOT
from tests.test_packaging import OF_FLAX, run_without
from tests.train import written_run

PAGE = (ROOT / "docs" / "library.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL))
NAMES = list(SECTIONS)
LAST_OF_CORE = NAMES.index("One token at a time")
OF_TRAINING = sorted({*extras.MODULES["train"], *extras.MODULES["hub"]} - OF_FLAX)


def program(section):
    """Return the blocks of a section as one program."""
    blocks = re.findall(r"^```python\n(.*?)^```", SECTIONS[section], flags=re.MULTILINE | re.DOTALL)
    assert blocks, section
    return "\n".join(map(textwrap.dedent, blocks))


def test_the_page_says_which_sections_need_only_the_core():
    assert re.search(r'from "(.*?)" to "(.*?)" need only', PAGE).groups() == (NAMES[0], NAMES[LAST_OF_CORE])


@pytest.mark.run
@pytest.mark.parametrize("section", NAMES[: LAST_OF_CORE + 1])
def test_a_program_of_the_core_runs_without_the_packages_of_extras(section, tmp_path):
    start = f"import os\nos.chdir({str(tmp_path)!r})\n"
    done = run_without(OF_TRAINING, start + program(section))
    assert done.returncode == 0, done.stderr


@pytest.mark.run
@pytest.mark.parametrize("section", NAMES[LAST_OF_CORE + 1 :])
def test_a_program_of_training_runs(section, tmp_path):
    folder = tmp_path / "runs" / "digits"
    written_run.write(folder, tuple(map(str, range(10))))
    Image.new("L", (32, 32)).save(folder / "example.png")
    start = f"import os\nos.chdir({str(tmp_path)!r})\n"
    done = run_without(["nothing"], start + program(section))
    assert done.returncode == 0, done.stderr
