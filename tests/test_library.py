"""Every program in docs/library.md runs, those of the core without any package of an extra."""

import json
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


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        yield


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


# Runs programs one after the other, each in a folder and a namespace of its own, and prints the tracebacks by section.
RUN_ALL = """
import json
import os
import traceback

tracebacks = {}
for section, (folder, program) in json.load(open(sys.argv[2])).items():
    os.chdir(folder)
    try:
        exec(compile(program, section, "exec"), {"__name__": "__main__"})
    except Exception:  # of any kind: the test of the section shows it
        tracebacks[section] = traceback.format_exc()
print()
print(json.dumps(tracebacks))
"""


def run_sections(sections, without, folder):
    """Run the programs of sections in one process without some modules, and return the tracebacks by section."""
    programs = {section: (str(folder / str(index)), program(section)) for index, section in enumerate(sections)}
    file = folder / "programs.json"
    file.write_text(json.dumps(programs))
    done = run_without(without, RUN_ALL, file)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def tracebacks_of_core(tmp_path_factory):
    folder, sections = tmp_path_factory.mktemp("core"), NAMES[: LAST_OF_CORE + 1]
    for index in range(len(sections)):
        (folder / str(index)).mkdir()
    return run_sections(sections, OF_TRAINING, folder)


@pytest.fixture(scope="module")
def tracebacks_of_training(tmp_path_factory):
    folder, sections = tmp_path_factory.mktemp("training"), NAMES[LAST_OF_CORE + 1 :]
    for index in range(len(sections)):
        run = folder / str(index) / "runs" / "digits"
        written_run.write(run, tuple(map(str, range(10))))
        Image.new("L", (32, 32)).save(run / "example.png")
    of_label_maps = folder / str(sections.index("Label maps"))
    config = segmentation_on_devices.config(of_label_maps)
    written_run.write(of_label_maps / "runs" / "scenes", ("a", "b"), config=config)
    Image.new("RGB", (32, 32)).save(of_label_maps / "photo.jpg")
    return run_sections(sections, ["nothing"], folder)


@pytest.mark.run
@pytest.mark.parametrize("section", NAMES[: LAST_OF_CORE + 1])
def test_a_program_of_the_core_runs_without_the_packages_of_extras(section, tracebacks_of_core):
    assert section not in tracebacks_of_core, tracebacks_of_core[section]


@pytest.mark.run
@pytest.mark.parametrize("section", NAMES[LAST_OF_CORE + 1 :])
def test_a_program_of_training_runs(section, tracebacks_of_training):
    assert section not in tracebacks_of_training, tracebacks_of_training[section]


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
