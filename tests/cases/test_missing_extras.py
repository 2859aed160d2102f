"""A command without its optional packages names itself, what is missing, and how to install it."""

import sys

import pytest

from mambaout_jax import extras
from mambaout_jax.__main__ import COMMANDS, main
from mambaout_jax.extras import install_command
from mambaout_jax.weights import verify
from tests.train import written_run

ARGUMENTS = {
    "bench-data": ["--config=configs/digits.py"],
    "demo": ["runs/x"],
    "export": ["onnx", "runs/x", "--out=a.onnx"],
    "plan": ["--config=configs/digits.py", "--topology=v5e:2x2"],
    "predict": ["runs/x", "a.png"],
    "prepare": ["digits"],
    "report": ["runs/x"],
    "reproduce": ["mambaout_femto"],
    "study": ["--dataset=digits"],
}
CONVERSIONS = {"convert import": ["a.pth", "--out=runs/x"], "convert export": ["runs/x", "--out=a.pth"]}
CALLS = {command: ARGUMENTS.get(command, []) for command in COMMANDS if command not in ("convert", "models")}


@pytest.mark.parametrize("command", [*CALLS, *CONVERSIONS])
def test_a_command_names_itself_and_the_extra(monkeypatch, capsys, command):
    monkeypatch.setattr(extras, "_is_installed", lambda module: module not in ("grain", "optax"))
    assert main([*command.split(), *({**CALLS, **CONVERSIONS}[command])]) == 2
    assert capsys.readouterr().err == f"error: {command} requires grain, optax; {install_command('train')}\n"


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("torch", ["--out=a.pth"], "a.pth requires PyTorch"),
        ("timm", ["--out=a.safetensors", "--verify=timm"], "--verify timm requires timm and PyTorch"),
    ],
)
def test_an_export_checks_what_it_will_import_before_the_work(
    monkeypatch, tmp_path, capsys, module, arguments, message
):
    workdir = tmp_path / "run"
    written_run.write(workdir, tuple(f"digit {label}" for label in range(10)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("mambaout_jax.export.torch.to_torch", lambda *_: pytest.fail("the weights were converted"))
    verify._load_timm.cache_clear()
    assert main(["convert", "export", str(workdir), *arguments]) == 2
    assert message in capsys.readouterr().err
