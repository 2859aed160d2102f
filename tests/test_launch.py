"""The launchers say what they would do, from any folder, and do nothing while they say it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.run

ROOT = Path(__file__).parent.parent
LAUNCHERS = ("local.sh", "test.sh", "test_lowest.sh")


@pytest.fixture
def launch(tmp_path):
    """Run a launcher from another folder, in a checkout with a space in its path, with stand-ins on PATH."""
    checkout = tmp_path / "a checkout"
    shutil.copytree(ROOT / "launch", checkout / "launch")
    for name in ("requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, checkout)
    elsewhere, bin_dir = tmp_path / "else where", tmp_path / "bin"
    elsewhere.mkdir()
    bin_dir.mkdir()

    def run(script, *arguments, code=0, environment=None, **stand_ins):
        for name, text in {"python3": f'exec "{sys.executable}" "$@"', **stand_ins}.items():
            (bin_dir / name).write_text(f"#!/bin/sh\n{text}\n")
            (bin_dir / name).chmod(0o755)
        result = subprocess.run(
            [checkout / "launch" / script, *arguments],
            check=False,
            cwd=elsewhere,
            env={"PATH": f"{bin_dir}:/usr/bin:/bin", "HOME": str(tmp_path / "home"), **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert result.returncode == code, result.stdout + result.stderr
        assert not list(elsewhere.iterdir())
        assert sorted(os.listdir(checkout)) == ["launch", "pyproject.toml", "requirements.txt"]
        return result.stdout.replace(str(checkout), "CHECKOUT") + result.stderr

    return run


@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("local.sh", ("--workdir", "--jax", "--python")),
        ("test.sh", ("--all", "--torch", "--python")),
        ("test_lowest.sh", ("--python",)),
        ("test_install.sh", ("core", "train", "gradio", "notebook", "torch", "--python")),
    ],
)
def test_help_tells_every_option(script, options, launch):
    text = launch(script, "--help")
    for option in (*options, "--dry-run", "--help"):
        assert f"  {option} " in text


def test_dry_run_of_training_prints_the_commands_in_order(launch):
    text = launch("local.sh", "--dry-run", "--config.seed=1", "--jax=cpu")
    commands = [line for line in text.splitlines() if line.startswith("+")]
    assert [command.split("python' ")[-1].split("python3 ")[-1] for command in commands] == [
        "-m venv --clear 'CHECKOUT/.venv'",
        "-m pip install --disable-pip-version-check --quiet --editable 'CHECKOUT[train]'",
        "'CHECKOUT/main.py' '--config=CHECKOUT/configs/digits.py' '--workdir=CHECKOUT/runs/digits' --config.seed=1",
    ]


def test_training_keeps_what_it_compiled_beside_the_environment(launch, tmp_path):
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    says = 'echo "cache $JAX_COMPILATION_CACHE_DIR"; exit 3'
    python.write_text(f'#!/bin/sh\ncase $* in *pip*) ;; *main.py*) {says} ;; *) exec "{sys.executable}" "$@" ;; esac\n')
    python.chmod(0o755)
    (tmp_path / "venv" / "pyvenv.cfg").touch()
    place = {"MAMBAOUT_VENV": str(tmp_path / "venv")}
    assert f"cache {tmp_path}/venv/compiled\n" in launch("local.sh", "--jax=cpu", code=3, environment=place)
    own = {**place, "JAX_COMPILATION_CACHE_DIR": "gs://b/compiled"}
    assert "cache gs://b/compiled\n" in launch("local.sh", "--jax=cpu", code=3, environment=own)


def test_dry_run_of_tests_passes_the_rest_to_pytest(launch):
    pytest_command = "-m pytest -n auto --dist loadfile --no-loadscope-reorder"
    default = launch("test.sh", "--dry-run", "-k", "a b")
    assert f"{pytest_command} -m 'not nightly and not run and not slow and not torch' -k 'a b'\n" in default
    everything = launch("test.sh", "--dry-run", "--all", "--torch")
    assert "[train,test,torch]' torch==2.13.0 timm==1.0.31 transformers==5.23.0\n" in everything
    assert everything.endswith(f"{pytest_command} -m 'not nightly'\n")


def test_dry_run_of_the_lowest_versions_installs_uv_then_the_floors(launch):
    text = launch("test_lowest.sh", "--dry-run", "-k", "a b")
    commands = [line.replace("CHECKOUT/.venv-lowest/", "") for line in text.splitlines() if line.startswith("+")]
    assert commands[1].endswith("'uv/bin/python' -m pip install --disable-pip-version-check --quiet uv")
    assert commands[2] == "+ 'uv/bin/uv' --quiet venv --clear --python 'uv/bin/python' 'lowest'"
    assert " --resolution lowest-direct " in commands[3]
    assert commands[3].endswith("--requirements 'CHECKOUT/pyproject.toml' --extra train --extra test")
    assert commands[-1].startswith("+ 'lowest/bin/python' -m pytest ")
    assert commands[-1].endswith("-m 'not nightly and not run and not slow and not torch' -k 'a b'")


def test_dry_run_of_installing_checks_every_case_with_every_python(launch):
    text = launch("test_install.sh", "--dry-run", "--python", sys.executable, f"--python={sys.executable}")
    installed = re.findall(r"-\*\.whl(\S*)' ?(.*)$", text, flags=re.MULTILINE)
    cases = [("", ""), ("[train]", ""), ("[demo]", ""), ("[train]", "notebook")]
    if sys.version_info[:2] == (3, 11):
        cases.append(("[train,torch]", "torch==2.13.0 timm==1.0.31"))
    assert installed == cases * 2
    assert text.count("-m pip check") == len(installed)
    only = launch("test_install.sh", "--dry-run", "--python", sys.executable, "notebook")
    assert only.count("-m pip check") == 1
    assert "word is not an option or a case" in launch("test_install.sh", "word", code=2)


@pytest.mark.skipif(sys.platform != "linux", reason="NVIDIA's driver is looked for on Linux")
@pytest.mark.parametrize(
    ("gpus", "jax"),
    [
        ("580.65.06, 9.0", "'jax[cuda13]'"),
        ("580.65.06, 12.0\\n580.65.06, 7.0", "'jax[cuda12]'"),
        ("535.104.05, 8.0", "'jax[cuda12]'"),
        ("470.82.01, 8.0", "older than 525"),
    ],
)
def test_jax_is_chosen_for_driver_and_gpus(gpus, jax, launch):
    assert jax in launch("local.sh", "--dry-run", **{"nvidia-smi": f"printf '{gpus}\\n'"})


@pytest.mark.parametrize("script", LAUNCHERS)
@pytest.mark.parametrize(
    ("python", "sentence"),
    [
        ("exit 1", "no Python 3.11 or newer was found on the PATH"),
        (f'case $* in *ensurepip*) exit 1 ;; esac; exec "{sys.executable}" "$@"', "lacks the module venv"),
    ],
    ids=["none", "without venv"],
)
def test_a_python_that_will_not_do_is_one_sentence(script, python, sentence, launch):
    others = dict.fromkeys(("python3.11", "python3.12", "python3.13"), "exit 1")
    text = launch(script, "--dry-run", code=2, python3=python, **others)
    assert sentence in text
    assert text.startswith("error: ")
    assert text.count("\n") == 1


def test_a_folder_that_is_no_environment_is_left_alone(launch, tmp_path):
    letter = tmp_path / "home" / "letter.txt"
    letter.parent.mkdir()
    letter.write_text("dear")
    text = launch("local.sh", code=2, environment={"MAMBAOUT_VENV": str(letter.parent)})
    assert "is not a virtual environment" in text
    assert letter.exists()


def test_unknown_accelerator_is_named(launch):
    assert "--jax is gpu; expected cpu, cuda12, cuda13 or tpu" in launch("local.sh", "--jax=gpu", code=2)
