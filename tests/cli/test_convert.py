"""The command converts in both directions, says what it found, and ends bad input with one sentence and code 2."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import mambaout_jax as mo
from mambaout_jax.__main__ import main
from mambaout_jax.export import torch as exchange
from tests.train import written_run
from tests.weights import pytorch

NAMES = tuple(f"digit {label}" for label in range(10))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("convert") / "run"
    written_run.write(folder, NAMES)
    return folder


@pytest.fixture(scope="module")
def file(workdir):
    path = workdir.parent / "digits.safetensors"
    assert main(["convert", "export", str(workdir), "--out", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def folder(workdir):
    path = workdir.parent / "digits"
    assert main(["convert", "export", str(workdir), "--out", str(path)]) == 0
    return path


def refusal(capsys, *argv):
    """Run a command that must be refused, and return its message."""
    capsys.readouterr()
    assert main(["convert", *map(str, argv)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def change(folder, **changes):
    """Replace tensors in the weights of a folder; None removes one."""
    tensors = {**load_file(folder / "model.safetensors"), **changes}
    kept = {key: np.ascontiguousarray(value) for key, value in tensors.items() if value is not None}
    save_file(kept, folder / "model.safetensors")


@pytest.mark.slow
def test_round_trip_prints_its_findings(workdir, file, tmp_path, capsys):
    assert main(["convert", "export", str(workdir), "--out", str(tmp_path / "folder"), "--weights", "raw"]) == 0
    words = capsys.readouterr().out
    assert "mambaout_femto, raw weights of step 7" in words
    assert "comparing outputs on 4 random images and 4 of digits" in words
    assert "read back: the logits are identical" in words
    assert words.endswith(f"exported to the folder {tmp_path / 'folder'}\n")
    assert main(["convert", "import", str(tmp_path / "folder"), "--out", str(tmp_path / "imported")]) == 0
    words = capsys.readouterr().out
    assert ": mambaout_femto, depths (1, 1), dims (8, 16), in_chans 1, kernel_size 3, 10 classes" in words
    image = str(tmp_path / "image.png")
    Image.new("L", (40, 30), 200).save(image)
    capsys.readouterr()
    answers = []
    for folder, weights in ((workdir, ["--weights", "raw"]), (tmp_path / "imported", [])):
        assert main(["predict", str(folder), image, "--json", *weights]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0] == answers[1]


@pytest.mark.parametrize("name", ["m.onnx", "m.NPZ", "there", "there.safetensors"])
def test_an_output_that_cannot_be_written_is_refused_before_the_weights_are_read(tmp_path, name, capsys):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notes.txt").touch()
    (tmp_path / "there.safetensors").touch()
    assert main(["convert", "export", str(tmp_path / "no_run"), "--out", str(tmp_path / name)]) == 2
    assert f"error: {tmp_path / name} " in capsys.readouterr().err


@pytest.mark.slow
def test_inspect_prints_key_format_variant_size_and_differences(folder, file, capsys):
    assert main(["convert", "inspect", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["key", "format", "timm"]
    assert lines[1].startswith("variant      mambaout_femto, num_classes 10, depths (1, 1)")
    assert lines[2].startswith("parameters   ")
    assert lines[2].endswith(" tensors")
    assert lines[3].split() == ["dtype", "float32"]
    assert lines[4].split() == ["differences", "none"]
    assert main(["convert", "inspect", str(file), "--model", "mambaout_kobe"]) == 0
    words = capsys.readouterr().out
    assert "  stages.2.blocks.14.fc1.weight is missing\n" in words
    assert "  stem.conv1.weight has shape (4, 1, 3, 3), expected (24, 1, 3, 3)\n" in words


def write_zeros(file, name, **options):
    model = mo.create_model(name, **options)
    tensors = mo.to_torch(model, jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), model.shapes))
    save_file(tensors, file)
    return tensors


def inspect(capsys, *argv):
    """Return what `convert inspect` prints, by the name of the line."""
    capsys.readouterr()
    assert main(["convert", "inspect", *map(str, argv)]) == 0
    return dict(re.findall(r"^(\S.{11}) ((?:.|\n(?= ))*)", capsys.readouterr().out, re.MULTILINE))


@pytest.mark.slow
def test_weights_of_variants_with_another_preprocessing_are_ambiguous(tmp_path, capsys):
    file = tmp_path / "vit.safetensors"
    write_zeros(file, "vit_tiny_patch16_224", img_size=32)
    assert inspect(capsys, file)["also fits   "] == "vit_tiny_patch16_224"
    words = refusal(capsys, "import", file, "--out", tmp_path / "imported")
    assert "deit_tiny_patch16_224 and vit_tiny_patch16_224 have these tensors but differ in mean and std; " in words
    assert "set --model NAME" in words
    assert not (tmp_path / "imported").exists()


@pytest.mark.slow
def test_inspect_names_the_variant_of_the_weights_and_the_one_to_compare_with(tmp_path, capsys):
    file = tmp_path / "vim.safetensors"
    write_zeros(file, "vim_tiny", num_classes=5)
    found = inspect(capsys, file, "--model", "vim_small")
    assert found["variant     "].startswith("vim_small, ")
    assert found["fits        "] == "vim_tiny"
    assert "cls_token has shape (1, 1, 192), expected (1, 1, 384)" in found["differences "]
    words = refusal(capsys, "inspect", file, "--model", "localvim_tiny")
    expected = "the weights belong to a Vim; expected a LocalVim (they fit vim_tiny, not localvim_tiny)"
    assert words == f"error: {file}: {expected}\n"


@pytest.mark.torch
def test_import_and_inspect_read_the_entry_of_that_name(folder, file, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    shutil.copytree(folder, tmp_path / "digits")
    (tmp_path / "digits" / "model.safetensors").unlink()
    state_dict = {key: torch.from_numpy(value) for key, value in load_file(file).items()}
    average = {key: value + 1 for key, value in state_dict.items()}
    torch.save({"model": state_dict, "model_ema": average}, tmp_path / "digits" / "pytorch_model.bin")
    assert inspect(capsys, tmp_path / "digits")["entry       "] == "model_ema"
    assert inspect(capsys, tmp_path / "digits", "--entry", "model")["entry       "] == "model"
    assert main(["convert", "import", str(tmp_path / "digits"), "--entry=model", "--out", str(tmp_path / "w")]) == 0
    assert "entry 'model'" in capsys.readouterr().out
    run = mo.load_run(tmp_path / "w")
    pytorch.assert_equal_trees(run.variables, mo.from_torch(run.model, file))
    assert "has no entries" in refusal(capsys, "inspect", file, "--entry", "model")


def test_inspect_counts_ignored_tensors(folder, file, tmp_path, capsys):
    tensors = {f"module.{key}": value for key, value in load_file(file).items()}
    others = {f"teacher.{index}": np.zeros(1, np.float32) for index in range(30)}
    shutil.copytree(folder, tmp_path / "digits")
    save_file({**tensors, **others}, tmp_path / "digits" / "model.safetensors")
    assert inspect(capsys, tmp_path / "digits")["ignored     "].endswith(", 20 more")


CONVNEXT = {
    name: np.zeros((2, 2), np.float32)
    for name in (
        "stem.0.weight",
        "stem.1.weight",
        "stages.0.blocks.0.conv_dw.weight",
        "stages.0.blocks.0.mlp.fc1.weight",
    )
}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "damaged or truncated safetensors file"),
        (lambda path: save_file(CONVNEXT, path), "match no known model; supported are MambaOut"),
        (lambda path: change(path.parent, **{"head.norm.bias": None}), "head.norm.bias is missing"),
        (lambda path: change(path.parent, extra=np.zeros(3, np.float32)), "extra is unexpected"),
        (
            lambda path: change(path.parent, **{"head.pre_logits.fc.weight": np.zeros((16, 64), np.float32)}),
            r"head.pre_logits.fc.weight has shape (16, 64), expected (64, 16)",
        ),
        (
            lambda path: change(path.parent, **{"head.fc.bias": np.full(10, np.nan, np.float32)}),
            "head.fc.bias has 10 non-finite values",
        ),
        (
            lambda path: change(path.parent, **{"head.fc.bias": np.zeros(10, np.float16)}),
            "head.fc.bias is float16; expected float32 or bfloat16",
        ),
        (lambda path: shutil.rmtree(path.parent), "does not exist"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_nothing_is_left(folder, tmp_path, capsys, spoil, words):
    path = tmp_path / "spoilt"
    shutil.copytree(folder, path)
    spoil(path / "model.safetensors")
    before = sorted(tmp_path.iterdir())
    sentence = refusal(capsys, "import", path, "--out", tmp_path / "imported")
    assert words in sentence
    assert str(path) in sentence
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_of_no_variant_asks_for_the_model(file, tmp_path, capsys):
    words = refusal(capsys, "import", file, "--out", tmp_path / "imported")
    assert "no variant has exactly these tensors; the closest, test_mambaout, differs in 76 tensors: " in words
    assert "--model" in words
    assert list(tmp_path.iterdir()) == []


def test_a_key_format_is_one_of_the_family(workdir, tmp_path, capsys):
    words = refusal(capsys, "export", workdir, "--out", tmp_path / "x.safetensors", "--key-format", "flax")
    assert words == "error: mambaout_femto has no key format 'flax'; expected one of timm, mambaout\n"


@pytest.mark.parametrize(
    ("words", "task", "plugins"),
    [([], None, []), (["--task=toy", "--plugin=a.b", "--plugin=c"], "toy", ["a.b", "c"])],
)
def test_task_and_plugins_reach_the_import(monkeypatch, words, task, plugins):
    asked = []
    monkeypatch.setattr(exchange, "import_weights", lambda *_, **options: asked.append(options))
    assert main(["convert", "import", "x.pth", "--out", "y", *words]) == 0
    assert [(options["task"], list(options["plugins"])) for options in asked] == [(task, plugins)]


def test_an_unknown_task_or_plugin_is_refused(file, tmp_path, capsys):
    out = ("--out", tmp_path / "x")
    assert "did you mean 'classification'" in refusal(capsys, "import", file, *out, "--task", "clasification")
    assert "'nowhere.toy' cannot be imported" in refusal(capsys, "import", file, *out, "--plugin", "nowhere.toy")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_wrong_path_or_name_is_refused(workdir, file, folder, tmp_path, capsys):
    out = ("--out", tmp_path / "x")
    assert "did you mean 'mambaout_femto'" in refusal(capsys, "import", file, *out, "--model", "mambaout_femo")
    assert "do not fit mambaout_tiny" in refusal(capsys, "import", file, *out, "--model", "mambaout_tiny")
    assert "is not the workdir of a run" in refusal(
        capsys, "export", tmp_path / "none", "--out", tmp_path / "x.safetensors"
    )
    assert "exists" in refusal(capsys, "export", workdir, "--out", file)
    assert "cannot be written" in refusal(capsys, "export", workdir, "--out", file / "x.safetensors")
    assert "cannot be written" in refusal(capsys, "import", folder, "--out", file / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.run
@pytest.mark.parametrize(("action", "code"), [("import", 2), ("export", 1)])  # an import checks the space first
def test_a_full_disk_is_one_sentence_and_leaves_nothing(workdir, folder, tmp_path, action, code):
    mount = f"mount -t tmpfs -o size=12k none {tmp_path}"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("no small disk may be mounted here")
    source, out = (folder, tmp_path / "imported") if action == "import" else (workdir, tmp_path / "a.safetensors")
    command = [sys.executable, "-m", "mambaout_jax", "convert", action, source, "--out", out]
    inside = f'{mount} && {{ "$@"; echo "code $?"; ls -A {tmp_path}; }}'
    ended = subprocess.run(
        ["unshare", "-m", "sh", "-c", inside, "sh", *command], capture_output=True, check=False, text=True
    )
    assert ended.stdout.endswith(f"code {code}\n"), ended.stderr
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ")
    assert "free some space" in line


@pytest.mark.run
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminated_command_leaves_nothing(folder, tmp_path, number):
    command = [sys.executable, "-m", "mambaout_jax", "convert", "import", folder, "--out", tmp_path / "imported"]
    # Writing takes a few milliseconds only, so the process is stopped before the signal is sent; it may end before.
    for _ in range(20):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while not any(tmp_path.glob(".imported.*")) and process.poll() is None:
                pass
            if stop_process(process) and any(tmp_path.glob(".imported.*")):
                process.send_signal(number)
                process.send_signal(signal.SIGCONT)
                assert process.wait(60) == 128 + number
                break
            process.send_signal(signal.SIGCONT)
        shutil.rmtree(tmp_path / "imported")
    else:
        pytest.fail("no process could be stopped while it wrote")
    assert list(tmp_path.iterdir()) == []


def stop_process(process):
    """Stop a child process; return False if it ended before."""
    process.send_signal(signal.SIGSTOP)
    if process.returncode is not None:
        return False
    ended = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    return ended.si_code == os.CLD_STOPPED


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "words"),
    [({"interpolation": "lanczos"}, "interpolation is 'lanczos'"), ({"crop_mode": "foo"}, "crop_mode is 'foo'")],
)
def test_invalid_preprocessing_is_refused_first(workdir, tmp_path, capsys, changes, words):
    assert main(["convert", "export", str(workdir), "--out", str(tmp_path / "folder")]) == 0
    path = tmp_path / "folder" / "config.json"
    config = json.loads(path.read_text())
    config["pretrained_cfg"] |= changes
    path.write_text(json.dumps(config))
    assert words in refusal(capsys, "import", tmp_path / "folder", "--out", tmp_path / "imported")


def test_invalid_outputs_are_refused(workdir, file, tmp_path, capsys):
    for place in ("gs://bucket/x", "file:///tmp/x"):
        assert "is in a bucket" in refusal(capsys, "import", file, "--out", place)
    assert "is empty" in refusal(capsys, "import", file, "--out", "")
    assert "unknown extension" in refusal(capsys, "export", workdir, "--out", tmp_path / "x.PTH")
    assert "cannot be written" in refusal(capsys, "export", workdir, "--out", tmp_path / f"{'a' * 300}.pth")
    assert "is a workdir of this package; expected weights of PyTorch" in refusal(capsys, "inspect", workdir)
