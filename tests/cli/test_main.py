"""Commands start fast and end with the right exit code and message."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mambaout_jax as mo
from mambaout_jax import plugins
from mambaout_jax.__main__ import COMMANDS, main
from mambaout_jax.cli import models
from mambaout_jax.errors import UserError
from mambaout_jax.extras import MissingExtraError
from tests.train import tiny


@pytest.mark.run
@pytest.mark.parametrize("argv", [["--help"], ["predict", "--help"], ["modls"], ["report"]])
def test_help_and_wrong_words_do_not_wait_for_jax(argv):
    code = f"""
import sys
import mambaout_jax as mo
from mambaout_jax import plugins
from mambaout_jax.__main__ import main
try:
    main({argv})
except SystemExit:
    pass
print(sorted({{"jax", "numpy", "PIL", "tensorflow_datasets"}} & set(sys.modules)))
"""
    process = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert process.stdout.endswith("[]\n")


def test_help_lists_each_command_with_what_it_does(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for command in COMMANDS:
        module = sys.modules[f"mambaout_jax.cli.{command.replace('-', '_')}"]
        assert f" {command} {module.__doc__.splitlines()[0]}" in shown


@pytest.mark.parametrize(("typed", "meant"), [("modles", "models"), ("perdict", "predict"), ("Report", "report")])
def test_unknown_command_is_answered_with_the_nearest(capsys, typed, meant):
    assert main([typed, "x"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {typed!r} is not a command; did you mean {meant!r}?")
    assert not captured.out


def test_without_a_command_the_usage_is_printed(capsys):
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "COMMAND" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["models", "--jsn"], "unrecognized arguments: --jsn; see python -m mambaout_jax --help"),
        (
            ["train", "--config=digits", "--workdir=w", "--num_epochs=9"],
            "unrecognized arguments: --num_epochs=9; a key of the config is set by --config.KEY=VALUE; see python -m "
            "mambaout_jax --help",
        ),
        (["predict"], "the following arguments are required: workdir, PATH; see python -m mambaout_jax predict "),
        (["train", "--num-processes=x"], "argument --num-processes: invalid int value: 'x'; see "),
    ],
)
def test_wrong_arguments_are_one_sentence(capsys, argv, sentence):
    with pytest.raises(SystemExit, match="2"):
        main(argv)
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {sentence}")
    assert captured.err.count("\n") == 1


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"mambaout_jax {mo.__version__}\n"


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["train", "--workdir=x"], "--config is missing; try --config=digits"),
        (["train", "--config=digits"], "--workdir is missing; expected a folder, for example --workdir=runs/digits"),
        (
            ["train", "--config=digits", "--workdir="],
            "--workdir is empty; expected a folder",
        ),
        (["evaluate"], "--workdir is missing; expected a folder, for example --workdir=runs/digits"),
        (["evaluate", "--workdir=x", "--config.seed=1"], "--config.seed=1 requires --config, for example --config=x/c"),
        (["evaluate", "--workdir=x", "--process-id=1"], "--coordinator, --num-processes and --process-id require"),
        (["train", "--config=digit", "--workdir=x"], "--config=digit is not an experiment of this package; expected"),
    ],
)
def test_arguments_of_training_that_do_not_fit_together_are_one_sentence(capsys, argv, sentence):
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {sentence}")
    assert captured.err.count("\n") == 1


def test_models_lists_those_of_a_plugin(monkeypatch, capsys):
    monkeypatch.setattr(plugins, "_loaded", {})
    assert main(["models", "--plugin=tests.toy.plugin", "--json"]) == 0
    assert {"spotter_small", "mambaout_tiny"} <= {row["name"] for row in json.loads(capsys.readouterr().out)}


@pytest.mark.parametrize("error", [UserError, MissingExtraError])
def test_invalid_input_is_one_sentence_and_exit_code_two(monkeypatch, capsys, error):
    def fail(args):
        raise error("the sentence")

    monkeypatch.setattr(models, "run", fail)
    assert main(["models"]) == 2
    assert capsys.readouterr().err == "error: the sentence\n"


def test_a_failure_of_the_program_is_not_hidden(monkeypatch):
    def fail(args):
        raise ZeroDivisionError

    monkeypatch.setattr(models, "run", fail)
    with pytest.raises(ZeroDivisionError):
        main(["models"])


def test_control_c_is_exit_code_130_without_a_message(monkeypatch, capsys):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "run", interrupt)
    assert main(["models"]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.run
@pytest.mark.parametrize("length", [10, 1_000_000])
def test_closed_pipe_is_not_an_error(length):
    code = f"""
import sys
import mambaout_jax as mo
from mambaout_jax import plugins
from mambaout_jax.__main__ import main
from mambaout_jax.cli import models
models.run = lambda args: print("x" * {length}) or 0
sys.stdin.readline()
sys.exit(main(["models"]))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        process.stdout.close()
        process.stdin.write("the reader is gone\n")
        process.stdin.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_report_of_a_missing_workdir_is_one_sentence(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {tmp_path} is not the workdir of a run")
    assert captured.err.count("\n") == 1


def test_report_prints_the_path_of_the_page(tmp_path, capsys):
    (tmp_path / "config.json").write_text(tiny.config().to_json())
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"
    assert (tmp_path / "report.html").is_file()


def test_words_of_options_are_joined_by_dashes():
    for file in sorted(Path(models.__file__).parent.glob("*.py")):
        assert not re.findall(r'"--[a-z-]*_[a-z_-]*"', file.read_text()), file
