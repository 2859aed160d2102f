"""A detector is trained, stopped, resumed, evaluated, shown and exported as any other run."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest

import mambaout_jax as mo
from mambaout_jax.__main__ import main
from mambaout_jax.data.prepare import prepare_coco_format
from mambaout_jax.evaluate.evaluation import evaluate
from mambaout_jax.export.torch import export_weights, import_weights
from mambaout_jax.report.html import write_report
from mambaout_jax.run.config import default_config, parse_config
from mambaout_jax.run.errors import StoppedError
from mambaout_jax.run.workdir import load_run
from mambaout_jax.tasks.detection import task
from mambaout_jax.tasks.errors import TaskError
from mambaout_jax.tasks.registry import find_task
from mambaout_jax.train.loop import train
from tests.data import coco_files
from tests.processes import run_python
from tests.train.detection_on_devices import config

ROOT = Path(__file__).parents[2]
NUM_VALIDATION = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write images of two orientations, with files of annotations."""
    folder = tmp_path_factory.mktemp("shapes")
    coco_files.write_json(folder / "train.json", coco_files.write_images(folder / "train", 12))
    coco_files.write_json(folder / "val.json", coco_files.write_images(folder / "val", NUM_VALIDATION, seed=1))
    for split in ("train", "val"):
        content = json.loads((folder / f"{split}.json").read_text())
        for image in content["images"]:
            image["file_name"] = f"{split}/{image['file_name']}"
        coco_files.write_json(folder / f"{split}.json", content)
    return folder


@pytest.fixture(scope="module")
def data_dir(folder, tmp_path_factory):
    target = tmp_path_factory.mktemp("data")
    files = [str(folder / f"{split}.json") for split in ("train", "val")]
    prepare_coco_format(str(folder), files[0], "shapes", str(target), validation=files[1])
    return target


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    return workdir, train(config(data_dir), workdir)


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.run
def test_a_resumed_run_equals_an_unbroken_one(finished, data_dir, tmp_path, monkeypatch):
    average_precision, calls = task.average_precision, []

    def interrupt(*args):
        calls.append(args)
        if len(calls) == 1:  # a second signal would not wait for the checkpoint
            os.kill(os.getpid(), signal.SIGTERM)
        return average_precision(*args)

    with monkeypatch.context() as patch:
        patch.setattr(task, "average_precision", interrupt)
        with pytest.raises(StoppedError):
            train(config(data_dir), tmp_path / "stopped")
    train(config(data_dir), tmp_path / "stopped")
    for weights in ("raw", "ema"):
        one, other = load_run(finished[0], weights), load_run(tmp_path / "stopped", weights)
        assert one.step == other.step == 6
        assert_same(one.variables, other.variables)


@pytest.mark.run
def test_a_run_reports_scores_of_every_image(finished):
    workdir, results = finished
    (scores,) = evaluate(None, workdir)["sets"]
    keys = [f"{kind}_{name}" for kind in ("box", "mask") for name in ("ap", "ap50", "ap_small", "ar100")]
    assert {key: scores["ema"][key] for key in keys} == {key: results["ema"][key] for key in keys}
    assert scores["ema"]["count"] == NUM_VALIDATION
    page = write_report(workdir).read_text()
    assert "box AP" in page
    assert page.count("<figcaption>objects") == NUM_VALIDATION


@pytest.mark.run
def test_predictions_are_files_for_each_image(finished, folder, tmp_path, capsys):
    photos = sorted((folder / "val").iterdir())[:2]
    assert main(["predict", str(finished[0]), *map(str, photos), "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {f"{photo.stem}{ending}" for photo in photos for ending in ("_objects.jpg", "_objects.json")}
    for entry in json.loads((tmp_path / "out" / f"{photos[0].stem}_objects.json").read_text()):
        assert entry["category_id"] in (2, 7, 90)
        assert entry["segmentation"]["size"] == [80, 50]
        assert len(entry["bbox"]) == 4


@pytest.mark.run
def test_weights_go_to_pytorch_and_back(finished, tmp_path):
    workdir, _ = finished
    export_weights(workdir, str(tmp_path / "folder"))
    import_weights(str(tmp_path / "folder"), tmp_path / "imported")
    imported = load_run(tmp_path / "imported")
    assert_same(imported.variables, load_run(workdir).variables)
    assert imported.labels["category_ids"] == [2, 7, 90]
    export_weights(workdir, str(tmp_path / "weights.safetensors"), key_format="mmdet-mambaout")
    run = load_run(workdir)
    assert_same(mo.from_torch(run.model, str(tmp_path / "weights.safetensors")), run.variables)


@pytest.mark.nightly
@pytest.mark.run
def test_four_processes_score_every_image_once(finished, data_dir):
    """Of five images, one process has two and the others one each: padding rows are not counted."""
    workdir, results = finished
    program = textwrap.dedent(f"""
        import json
        from mambaout_jax.evaluate.evaluation import evaluate
        from tests.train.detection_on_devices import config
        (scores,) = evaluate(config({str(data_dir)!r}, eval_batch_size=4), {str(workdir)!r})["sets"]
        print(json.dumps(scores["ema"]))
    """)
    for printed in run_python(program, 4, timeout=400):
        assert json.loads(printed.splitlines()[-1]) == pytest.approx(results["ema"], rel=1e-5)


def test_the_task_of_imported_weights_is_that_of_their_model():
    model = mo.create_model("mask_rcnn_mambaout_femto", depths=(1, 1, 1, 1), dims=(4, 8, 8, 8), num_classes=3)
    assert find_task(model).name == "detection"


@pytest.mark.parametrize(
    ("name", "models"),
    [
        ("detection", ["vim_tiny", "upernet_vim_tiny"]),
        ("classification", ["mask_rcnn_mambaout_femto"]),
        ("segmentation", ["mask_rcnn_mambaout_femto"]),
    ],
)
def test_models_of_other_tasks_are_refused(name, models):
    for model in models:
        parsed = default_config(name)
        parsed.data.name, parsed.model.name = "shapes", model
        with pytest.raises(TaskError, match=model):
            parse_config(parsed).build_task().check()


@pytest.mark.nightly
@pytest.mark.run
def test_eight_devices_compute_what_one_computes(data_dir):
    """The losses and the gradient of a step, and detections in images of both canvases."""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.train.detection_on_devices", str(data_dir)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["devices"] == 8
    assert found["canvases"] == 2
    assert found["step"] < 1e-5
    assert found["detections"] > 0
    assert found["other_classes"] == 0
    assert found["boxes"] < 1e-2


@pytest.mark.nightly
@pytest.mark.run
def test_an_exported_program_finds_the_same_objects(finished, tmp_path):
    """The export compares the program that it reads back, for any number of images."""
    assert main(["export", "stablehlo", str(finished[0]), "--out", str(tmp_path / "a.stablehlo")]) == 0
    assert main(["export", "onnx", str(finished[0]), "--out", str(tmp_path / "a.onnx")]) == 0
