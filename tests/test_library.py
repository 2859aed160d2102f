"""Every program in docs/library.md runs, those of the core without any package of an extra."""

import re
import textwrap

import pytest
from PIL import Image

from mambaout_jax import extras
from tests.test_layering import ROOT
from tests.test_packaging import OF_FLAX, run_without
from tests.train import segmentation_on_devices, written_run

PAGE = (ROOT / "docs" / "library.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL))
NAMES = list(SECTIONS)
LAST_OF_CORE = NAMES.index("One token at a time")
OF_TRAINING = sorted({*extras.MODULES["train"], *extras.MODULES["hub"]} - OF_FLAX)


@pytest.fixture(autouse=True)
def quick_compilation(monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


def blocks(section):
    """Return the programs of a section."""
    found = re.findall(r"^```python\n(.*?)^```", SECTIONS[section], flags=re.MULTILINE | re.DOTALL)
    assert found, section
    return list(map(textwrap.dedent, found))


def program(section):
    """Return the blocks of a section as one program."""
    return "\n".join(blocks(section))


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
    if section == "Label maps":
        written_run.write(tmp_path / "runs" / "scenes", ("a", "b"), config=segmentation_on_devices.config(tmp_path))
        Image.new("RGB", (32, 32)).save(tmp_path / "photo.jpg")
    start = f"import os\nos.chdir({str(tmp_path)!r})\n"
    done = run_without(["nothing"], start + program(section))
    assert done.returncode == 0, done.stderr


@pytest.fixture
def four_devices(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4")


@pytest.mark.run
def test_a_gradient_is_computed_on_four_devices(four_devices):
    check = """
assert jax.device_count() == 4
assert not images.sharding.is_fully_replicated
assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(gradients))
"""
    done = run_without(OF_TRAINING, program("Several devices") + check)
    assert done.returncode == 0, done.stderr


@pytest.mark.run
def test_fine_tuning_on_four_devices_gives_the_losses_of_one(four_devices):
    alone, _, sharded = blocks("Fine-tuning with optax")
    check = """
assert jax.device_count() == 4 and len(images.sharding.device_set) == 4
assert not images.sharding.is_fully_replicated
assert abs(loss - of_one_device) < 1e-4 * abs(of_one_device), (loss, of_one_device)
"""
    done = run_without(["nothing"], alone + "\nof_one_device = float(loss)\n" + sharded + check)
    assert done.returncode == 0, done.stderr
