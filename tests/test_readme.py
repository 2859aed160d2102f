"""What the README tells people to type works."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mambaout_jax.__main__ import main as command_line
from tests.data.pictures import textured
from tests.train import tiny

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands(text):
    return [shlex.split(line, comments=True) for line in text.splitlines() if line.startswith("python ")]


def write_photos(folder):
    """Write two classes of images, as somebody's own photographs lie in folders."""
    for seed, name in enumerate(("cat", "cat", "cat", "dog", "dog", "dog")):
        (folder / name).mkdir(parents=True, exist_ok=True)
        textured(60, 50, seed).save(folder / name / f"{seed}.jpg")


def test_readme_shows_two_commands_as_the_way_in():
    way_in = README[README.index("## Two commands") : README.index("## Install")]
    assert re.findall(r"^```\n(.*?)\n```", way_in, flags=re.MULTILINE | re.DOTALL) == [
        "launch/local.sh",
        "launch/test.sh",
    ]
    assert all((ROOT / name).exists() for name in ("launch/local.sh", "launch/test.sh"))


def test_runs_are_made_before_they_are_read():
    """A reader copies the commands in order; launch/local.sh writes runs/digits."""
    made = {"runs/digits"}
    for _, text in BLOCKS:
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            outputs = {word.partition("=")[2] for word in words if word.startswith("--workdir=")}
            outputs |= {words[i + 1] for i, word in enumerate(words[:-1]) if word == "--out"}
            read = {word.rpartition("=")[2] for word in words if "runs/" in word and "://" not in word} - outputs
            assert not {path for path in read if "/" not in path.removeprefix("runs/")} - made, line
            made |= outputs


@pytest.mark.run
def test_every_command_of_the_readme_runs(tmp_path, monkeypatch):
    typed = [command[1:] for kind, text in BLOCKS if kind == "" for command in commands(text)]
    assert len(typed) >= 8
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "main.py").symlink_to(ROOT / "main.py")
    small = [flag for flag in tiny.flags() if not flag.startswith("--config=")]
    write_photos(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for first, *rest in typed:
        if first == "-m" and rest[1] != "prepare":  # in this process, for the time that a new one takes
            package, *arguments = rest
            if arguments[0] == "predict":  # launch/local.sh writes this file
                Image.fromarray(np.full((8, 8), 99, np.uint8)).save("runs/digits/example.png")
            assert package == "mambaout_jax"
            assert command_line(arguments) == 0, arguments
            continue
        trains = first == "main.py" and "--mode=evaluate" not in rest
        # The small experiment first, so that what the README changes wins.
        arguments = [first, rest[0], *(small if trains else []), *rest[1:]]
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, (arguments, done.stderr)


@pytest.mark.slow
def test_library_snippet_of_the_readme_runs():
    (snippet,) = (text for kind, text in BLOCKS if kind == "python")
    scope: dict = {}
    exec(compile(snippet, "README.md", "exec"), scope)
    assert scope["logits"].shape == (2, 10)
    assert [feature_map.shape[1] for feature_map in scope["maps"]] == [16, 8, 4, 2]


def test_links_of_the_readme_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
