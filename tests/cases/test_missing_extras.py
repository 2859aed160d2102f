"""A command without its optional packages names itself, what is missing, and how to install it."""

import pytest

from mambaout_jax import extras
from mambaout_jax.__main__ import COMMANDS, main

ARGUMENTS = {
    "bench-data": ["--config=configs/digits.py"],
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
    assert capsys.readouterr().err == f'error: {command} requires grain, optax; pip install "mambaout_jax[train]"\n'
