"""Whether images are turned upright by their EXIF orientation is part of a model: exports and imports keep it."""

import json

import numpy as np
import pytest

from mambaout_jax.data.imagenet_classes import imagenet_class_names
from mambaout_jax.export.torch import export_weights, import_weights
from mambaout_jax.run.workdir import load_environment, load_run, open_workdir
from mambaout_jax.weights import WeightsError, read_checkpoint
from tests.cases.test_same_images import with_exif
from tests.timm import load_timm
from tests.train import written_run

NAMES = ("ant", "bee")
# Class names of a model, the rule of its dataset if known, and whether `predict` turns images upright.
RULES = [(NAMES, True, True), (NAMES, False, False), (NAMES, None, True)]


def write_run(workdir, class_names, rule):
    written_run.write(workdir, class_names)
    file = workdir / "environment.json"
    environment = json.loads(file.read_text())
    if rule is not None:
        environment["labels"]["exif_orientation"] = rule
    file.write_text(json.dumps(environment))


def seen(workdir, orientation):
    run = load_run(workdir)
    return run.task.predictor(run.model, run.labels).prepare(with_exif(orientation))["image"]


@pytest.mark.slow
@pytest.mark.parametrize(("class_names", "rule", "upright"), RULES)
def test_prediction_treats_exif_alike_before_and_after_an_export_and_import(tmp_path, class_names, rule, upright):
    write_run(tmp_path / "run", class_names, rule)
    export_weights(tmp_path / "run", str(tmp_path / "folder"))
    import_weights(str(tmp_path / "folder"), tmp_path / "imported")
    for workdir in (tmp_path / "run", tmp_path / "imported"):
        turned, plain = seen(workdir, 6), seen(workdir, 1)
        assert (not np.array_equal(turned, plain)) == upright
        assert load_environment(open_workdir(workdir))["labels"].get("exif_orientation") == rule
    np.testing.assert_array_equal(seen(tmp_path / "run", 6), seen(tmp_path / "imported", 6))


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["yes", 1, []])
def test_an_invalid_rule_is_named(tmp_path, rule):
    write_run(tmp_path / "run", NAMES, True)
    export_weights(tmp_path / "run", str(tmp_path / "folder"))
    config = tmp_path / "folder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"exif_orientation": rule}))
    with pytest.raises(WeightsError, match=r"config.json has exif_orientation .*; expected true or false"):
        read_checkpoint(tmp_path / "folder")


@pytest.mark.torch
def test_timm_reads_a_folder_with_the_rule(tmp_path):
    timm, _ = load_timm()
    write_run(tmp_path / "run", NAMES, True)
    export_weights(tmp_path / "run", str(tmp_path / "folder"), verify_timm=True)
    assert json.loads((tmp_path / "folder" / "config.json").read_text())["exif_orientation"] is True
    model = timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True)
    assert model.num_classes == len(NAMES)


@pytest.mark.slow
def test_a_model_of_imagenet_ignores_exif_unless_its_dataset_did_not(tmp_path):
    write_run(tmp_path / "run", NAMES, None)
    run = load_run(tmp_path / "run")
    names = list(imagenet_class_names())
    for rule, upright in ((None, False), (True, True), (False, False)):
        found = run.task.imported_labels(run.model, {"class_names": names, "exif_orientation": rule}).labels
        turned, plain = (
            run.task.predictor(run.model, found).prepare(with_exif(orientation))["image"] for orientation in (6, 1)
        )
        assert (not np.array_equal(turned, plain)) == upright
