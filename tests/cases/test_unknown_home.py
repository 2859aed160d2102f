"""A path in an unknown home folder is refused, wherever files are written, instead of making a folder named `~`."""

import os
from pathlib import Path

import pytest

import mambaout_jax as mo
from mambaout_jax.__main__ import main
from mambaout_jax.errors import UserError
from mambaout_jax.export.torch import import_weights
from mambaout_jax.models import Checkpoint
from mambaout_jax.run.workdir import claim_workdir, load_run
from mambaout_jax.storage import find_unknown_home
from mambaout_jax.weights import (
    WeightsError,
    check_file_target,
    check_folder_target,
    download_checkpoint,
    read_checkpoint,
)
from tests.train import tiny

UNKNOWN = ["~nosuchuser/x", "~nosuchuser"]
USES = {
    "train": lambda path: claim_workdir(path, tiny.config()),
    "read a run": load_run,
    "import": lambda path: import_weights("missing.safetensors", path),
    "export a folder": lambda path: check_folder_target(path, force=False),
    "export a file": lambda path: check_file_target(f"{path}.safetensors", force=False),
}
COMMANDS = {
    "prepare": lambda path: ["prepare", "digits", f"--data-dir={path}"],
    "prepare folder": lambda path: ["prepare", "folder", path, "--name=pets"],
    "prepare imagenet": lambda path: ["prepare", "imagenet", f"--folder={path}"],
    "analyze": lambda path: ["analyze", f"--out={path}"],
}


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", UNKNOWN)
@pytest.mark.parametrize("use", USES)
def test_no_workdir_or_output_is_made(use, path):
    with pytest.raises(UserError, match=r"is not a path, because the home folder is unknown; check the user's name"):
        USES[use](path)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_refuses_it_in_one_sentence(command, capsys):
    assert main(COMMANDS[command]("~nosuchuser/x")) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "~nosuchuser/x is not a path, because the home folder is unknown" in line


def test_an_unset_home_is_named(monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert "set HOME" in find_unknown_home("~/x")


@pytest.mark.parametrize("path", ["~/x", "~", "x", "./~x", "x/~nosuchuser", "gs://bucket/~x", "~root/x"])
def test_other_paths_are_taken(path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert not find_unknown_home(path)


def test_an_image_in_it_is_named():
    model = mo.create_model("mambaout_femto")
    with pytest.raises(UserError, match=r"~nosuchuser/x\.jpg: No such file or directory"):
        mo.preprocess(["~nosuchuser/x.jpg"], model)


DOWNLOADS = {
    "published weights": lambda: download_checkpoint(Checkpoint("https://example.invalid/a.pth", None)),
    "hub": lambda: read_checkpoint("hf-hub:org/name"),
}


@pytest.mark.parametrize("download", DOWNLOADS)
def test_no_cache_of_downloads_is_made(download, monkeypatch):
    monkeypatch.setattr("pooch.os_cache", lambda project: Path("~/.cache", project))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "~/.cache/huggingface/hub")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(WeightsError, match=r"its cache, ~/\.cache/.*, is not a path, .* unknown; set HOME"):
        DOWNLOADS[download]()
