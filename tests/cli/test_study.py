"""`study` takes a dataset, prints its results and returns the right exit code."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from mambaout_jax.__main__ import main
from tests.study.study_runs import EXPERIMENT, ROOT, Training


@pytest.fixture
def training(monkeypatch):
    return Training(monkeypatch)


@pytest.fixture
def command(tmp_path):
    return ["study", "--dataset", "digits", "--workdir", str(tmp_path / "study"), f"--config.data.data_dir={tmp_path}"]


@pytest.mark.slow
def test_prints_the_answer_a_table_for_each_comparison_and_the_page(training, command, tmp_path, capsys):
    assert main(command) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == json.loads((tmp_path / "study" / "study.json").read_text())["answer"]
    tables = [line for line in printed if line.startswith(("convolution alone", "SSM", "ViT", "model"))]
    assert [line.split("  ")[0] for line in tables] == [
        "model", "convolution alone", "SSM (causal)", "model", "convolution alone", "SSM (causal)", "ViT (full)",
    ]  # fmt: skip
    assert "+2.00" in tables[2]
    assert "7.65 M" in tables[6]
    assert printed[-1] == f"page: {tmp_path / 'study' / 'study.html'}"


@pytest.mark.slow
def test_json_is_the_content_of_the_file(training, command, tmp_path, capsys):
    assert main([*command, "--json", "--seeds=2"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "study" / "study.json").read_text())


@pytest.mark.slow
def test_config_changes_reach_every_run(training, command):
    assert main([*command, "--config.optim.learning_rate=0.5"]) == 0
    assert {config.optim.learning_rate for config in training.configs.values()} == {0.5}


@pytest.mark.slow
def test_a_named_config_is_used_for_the_named_dataset(training, command, tmp_path, capsys):
    assert main([*command, f"--config={EXPERIMENT}:digits", "--config.batch_size=32"]) == 0
    assert {config.batch_size for config in training.configs.values()} == {32}
    command[2] = "beans"
    assert main([*command, f"--config={EXPERIMENT}:digits"]) == 2
    assert "'beans'" in capsys.readouterr().err


def test_the_named_dataset_is_the_one_that_is_studied(monkeypatch, command, capsys):
    studied = []
    monkeypatch.setattr("mambaout_jax.study.study.run_study", lambda config, *_: studied.append(config.data.name) or {})
    for name in ("pathfinder", "pathfinder/32"):
        command[2] = name
        with pytest.raises(KeyError):  # nothing to print
            main(command)
    assert studied == ["pathfinder", "pathfinder/32"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--dataset", "beans"], "no experiment for dataset 'beans'"),
        (["--dataset", "scenes"], "add --task segmentation"),
        (["--dataset", "digits", "--task", "detecton"], "'detecton' is not a known task"),
        (
            ["--dataset", "digits", "--task", "classification", f"--config={EXPERIMENT}:digits"],
            "--task chooses an experiment",
        ),
        (["--dataset", "digits", "--config.batch_sise=3"], "batch_sise"),
        (["--dataset", "digits", "--config=nowhere.py"], "nowhere.py"),
        (["--dataset", "digits", "--config.model.name=vit_tiny_patch16_224"], "vit_tiny_patch16_224"),
    ],
)
def test_invalid_input_is_one_sentence(monkeypatch, tmp_path, capsys, words, told):
    monkeypatch.chdir(tmp_path)
    assert main(["study", *words]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert told in captured.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seeds", ["1", "0", "-3", "many"])
def test_fewer_than_two_seeds_show_no_spread_and_are_refused(capsys, seeds):
    with pytest.raises(SystemExit, match="2"):
        main(["study", "--dataset", "digits", f"--seeds={seeds}"])
    assert f"'{seeds}' is not an integer of at least 2" in capsys.readouterr().err


@pytest.mark.slow
def test_a_variant_that_diverges_is_left_out_of_the_tables(training, command, capsys):
    training.diverging = {("matched-ssm-causal", 0)}
    assert main(command) == 0
    captured = capsys.readouterr()
    assert "matched-ssm-causal is excluded; repeat 0 diverged: step 3 has loss nan" in captured.err
    tables = [line.split("  ")[0] for line in captured.out.splitlines() if line.startswith(("conv", "SSM", "ViT"))]
    assert tables == ["convolution alone", "SSM (causal)", "convolution alone", "ViT (full)"]
    assert "Excluded because a run diverged: SSM (causal) (repeat 0)." in captured.out


@pytest.mark.slow
def test_a_diverging_model_without_an_ssm_ends_the_study_with_a_remedy(training, command, tmp_path, capsys):
    training.diverging = {("conv", 1)}
    folder = tmp_path / "study" / "runs" / "conv" / "1"
    for _ in range(2):
        assert main(command) == 3
        assert capsys.readouterr().err.splitlines()[-1] == (
            "error: conv, repeat 1: step 3 has loss nan. This is the baseline of all comparisons: change the config "
            f"and use another --workdir, or remove {folder} to train it again"
        )


@pytest.mark.slow
def test_a_full_disk_is_one_sentence(training, command, capsys):
    training.stop_after, training.error = 1, OSError("No space left on device")
    assert main(command) == 1
    assert "no space left" in capsys.readouterr().err


@pytest.mark.nightly
def test_a_killed_study_resumes_and_compiles_a_variant_once(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    environment["PYTHONPATH"] = str(ROOT)
    changes = {
        "num_epochs": 2, "eval_every_epochs": 2, "optim.warmup_epochs": 1, "batch_size": 128, "log_every_steps": 2,
        "model.depths": (1, 1), "model.dims": (16, 24), "data.data_dir": tmp_path,
        "study.removed": ("ssm-causal",), "study.matched": ("vit-full",),
    }  # fmt: skip

    workdir = tmp_path / "study"

    def start():
        command = ["--dataset=digits", "--seeds=2", f"--workdir={workdir}", "--json"]
        flags = [f"--config.{key}={value}" for key, value in changes.items()]
        arguments = [sys.executable, "-m", "mambaout_jax", "study", *command, *flags]
        return subprocess.Popen(
            arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
        )

    process = start()
    while not list(workdir.glob("runs/*/*/results.json")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=120)
    assert process.returncode == os.EX_TEMPFAIL, error
    assert error.splitlines()[-1].startswith("error: stopped by SIGTERM; ")  # saved, or before the first step
    assert not (workdir / "study.json").exists()
    finished = {path: path.stat().st_mtime_ns for path in workdir.glob("runs/*/*/results.json")}

    process = start()
    output, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert finished == {path: path.stat().st_mtime_ns for path in finished}
    study = json.loads(output)
    assert [variant["name"] for variant in study["variants"]] == ["conv", "removed-ssm-causal", "matched-vit-full"]
    for variant in study["variants"]:
        assert variant["step_seconds"] > 0
        assert variant["memory_bytes"] > 2**20
    # Both repeats of a variant and the measurement of its memory share one program.
    assert len(list((workdir / "compiled").glob("jit_train_step-*-cache"))) == 3
    assert len(list(workdir.glob("runs/*/*/report.html"))) == 6
