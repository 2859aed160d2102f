"""A segmentation is trained, stopped, resumed, evaluated, shown and exported as any other run."""

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
from PIL import Image

import mambaout_jax as mo
from mambaout_jax.data.prepare import prepare_segmentation
from mambaout_jax.data.prepare.scenes import ScenesConfig, load_material, make_scene
from mambaout_jax.evaluate.evaluation import evaluate
from mambaout_jax.export.torch import export_weights, import_weights
from mambaout_jax.report.html import write_report
from mambaout_jax.run.config import default_config, parse_config
from mambaout_jax.run.errors import RunError, StoppedError
from mambaout_jax.run.pretrained import load_pretrained_for
from mambaout_jax.run.workdir import load_run
from mambaout_jax.tasks.errors import TaskError
from mambaout_jax.tasks.registry import find_task
from mambaout_jax.tasks.segmentation import task
from mambaout_jax.train.loop import train
from mambaout_jax.weights import WeightsError, write_file, write_folder
from tests.processes import run_python
from tests.train.segmentation_on_devices import config

ROOT = Path(__file__).parents[2]
CLASSES = ("background", *map(str, range(10)))
SIZES = {"train": [(48, 64)] * 16, "val": [(48, 64), (64, 40), (56, 56), (64, 64), (33, 61)]}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Prepare small scenes from a folder; images for evaluation have several sizes."""
    folder = tmp_path_factory.mktemp("scenes")
    for split, sizes in SIZES.items():
        material = load_material()["train" if split == "train" else "validation"]
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True)
        for index, (height, width) in enumerate(sizes):
            scene = make_scene(ScenesConfig(name="64", side=64), material, 0, index)
            Image.fromarray(scene.image[:height, :width]).save(folder / split / "images" / f"{index}.png")
            Image.fromarray(scene.labels[:height, :width]).save(folder / split / "masks" / f"{index}.png")
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    target = tmp_path_factory.mktemp("data")
    prepare_segmentation(str(folder), "digit_scenes", str(target))
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
    summarize, calls = task.summarize, []

    def interrupt(*args):
        calls.append(args)
        if len(calls) == 1:  # a second signal would not wait for the checkpoint
            os.kill(os.getpid(), signal.SIGTERM)
        return summarize(*args)

    with monkeypatch.context() as patch:
        patch.setattr(task, "summarize", interrupt)
        with pytest.raises(StoppedError):
            train(config(data_dir), tmp_path / "stopped")
    train(config(data_dir), tmp_path / "stopped")
    for weights in ("raw", "ema"):
        one, other = load_run(finished[0], weights), load_run(tmp_path / "stopped", weights)
        assert one.step == other.step == 4
        assert_same(one.variables, other.variables)


@pytest.mark.run
def test_a_run_reports_scores_of_every_pixel(finished):
    workdir, results = finished
    (scores,) = evaluate(None, workdir)["sets"]
    for key in ("miou", "macc", "aacc"):
        assert scores["ema"][key] == pytest.approx(results["ema"][key], rel=1e-6)
    assert scores["ema"]["count"] == len(SIZES["val"])
    with np.load(workdir / "predictions.npz") as arrays:
        labeled = arrays["areas"][:, 2].sum()
    assert labeled == sum(height * width for height, width in SIZES["val"])
    page = write_report(workdir).read_text()
    assert "mIoU" in page
    assert page.count("<figcaption>prediction") == len(SIZES["val"])


@pytest.mark.run
def test_four_processes_count_every_pixel_once(finished, data_dir):
    """Of five images, one process has two and the others one each: padding rows are not counted."""
    workdir, results = finished
    program = textwrap.dedent(f"""
        import json
        from mambaout_jax.evaluate.evaluation import evaluate
        from tests.train.segmentation_on_devices import config
        (scores,) = evaluate(config({str(data_dir)!r}, eval_batch_size=4), {str(workdir)!r})["sets"]
        print(json.dumps(scores["ema"]))
    """)
    for printed in run_python(program, 4, timeout=400):
        assert json.loads(printed.splitlines()[-1]) == pytest.approx(results["ema"], rel=1e-5)


@pytest.mark.run
def test_predictions_are_files_for_each_image(finished, tmp_path, capsys):
    from mambaout_jax.__main__ import main

    pixels = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    assert main(["predict", str(finished[0]), str(tmp_path / "photo.png"), "--out", str(tmp_path / "out")]) == 0
    assert "%" in capsys.readouterr().out
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"photo_labels.png", "photo_overlay.jpg", "photo_classes.json"}
    with Image.open(tmp_path / "out" / "photo_labels.png") as labels:
        assert (labels.mode, labels.size) == ("P", (70, 90))
    classes = json.loads((tmp_path / "out" / "photo_classes.json").read_text())
    assert sum(entry["share"] for entry in classes) == pytest.approx(1)


@pytest.mark.run
def test_weights_go_to_pytorch_and_back(finished, tmp_path):
    workdir, _ = finished
    export_weights(workdir, str(tmp_path / "folder"))
    import_weights(str(tmp_path / "folder"), tmp_path / "imported")
    assert_same(load_run(tmp_path / "imported").variables, load_run(workdir).variables)
    export_weights(workdir, str(tmp_path / "weights.safetensors"), key_format="mmseg-mambaout")
    run = load_run(workdir)
    assert_same(mo.from_torch(run.model, str(tmp_path / "weights.safetensors")), run.variables)


@pytest.mark.slow
def test_an_exported_folder_restores_the_task_and_its_preprocessing(data_dir, tmp_path):
    """An imported model predicts as the run whose weights were exported."""
    parsed = config(data_dir, **{"eval.window": 32, "eval.flip": True})
    model = parsed.build_task().build_model({"num_classes": 11})
    options = {key: parsed.values[key] for key in ("data.box", "eval.window", "eval.flip")}
    state = mo.to_torch(model, model.init(jax.random.key(0)))
    write_folder(str(tmp_path / "first"), model, state, task="segmentation", task_options=options)
    import_weights(str(tmp_path / "first"), tmp_path / "imported")
    export_weights(tmp_path / "imported", str(tmp_path / "second"))
    import_weights(str(tmp_path / "second"), tmp_path / "again")
    first, again = load_run(tmp_path / "imported"), load_run(tmp_path / "again")
    assert first.config == again.config
    assert first.config.task_options | options == first.config.task_options
    assert_same(first.variables, again.variables)


def test_the_task_of_imported_weights_is_that_of_their_model(tmp_path):
    model = mo.create_model("upernet_mambaout_femto", depths=(1, 1, 1, 1), dims=(4, 8, 8, 8), num_classes=3)
    write_folder(str(tmp_path / "folder"), model, mo.to_torch(model, model.init(jax.random.key(0))))
    with pytest.raises(RunError, match="upernet_mambaout_femto, which does not fit the task classification; omit"):
        import_weights(str(tmp_path / "folder"), tmp_path / "imported", task="classification")
    assert find_task(model).name == "segmentation"
    assert find_task(mo.create_model("mambaout_femto")).name == "classification"


def test_a_segmentation_model_is_no_classifier():
    parsed = default_config()
    parsed.data.name, parsed.model.name = "digits", "upernet_mambaout_femto"
    with pytest.raises(TaskError, match="is 'upernet_mambaout_femto'; expected a classifier"):
        parse_config(parsed).build_task().check()


def test_a_backbone_starts_from_a_classifier(data_dir, tmp_path):
    parsed = config(data_dir)
    model = parsed.build_task().build_model({"num_classes": 11})
    options = {name: model.options[name] for name in ("depths", "dims")}
    classifier = mo.create_model("mambaout_femto", num_classes=7, **options)
    variables = classifier.init(jax.random.key(1))
    write_file(str(tmp_path / "classifier.safetensors"), mo.to_torch(classifier, variables))
    found = load_pretrained_for(str(tmp_path / "classifier.safetensors"), model)
    assert not found.has_head
    backbone = found.variables["params"]["backbone"]
    assert backbone.keys() == model.shapes["params"]["backbone"].keys()
    assert_same(backbone, {name: variables["params"][name] for name in backbone})
    other = mo.create_model("upernet_vim_tiny", img_size=32)
    with pytest.raises((RunError, WeightsError)):
        load_pretrained_for(str(tmp_path / "classifier.safetensors"), other)


def test_a_classifier_is_no_segmentation_model():
    parsed = default_config("segmentation")
    parsed.data.name, parsed.model.name = "digit_scenes", "vim_tiny"
    with pytest.raises(TaskError, match="expected a segmentation model"):
        parse_config(parsed).build_task().check()


@pytest.mark.nightly
@pytest.mark.run
def test_eight_devices_compute_what_one_computes(data_dir):
    """The loss, the gradient and the statistics of a step, and label maps of images in several canvases."""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.train.segmentation_on_devices", str(data_dir)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["devices"] == 8
    assert found["shapes"] > 1
    assert found["step"] < 1e-5
    assert found["other_labels"] == 0
