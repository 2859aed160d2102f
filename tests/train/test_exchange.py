"""Weights go to PyTorch and come back with the same bits, and a failed conversion leaves no files."""

import json

import jax
import numpy as np
import pytest
from ml_dtypes import bfloat16

import mambaout_jax as mo
from mambaout_jax import weights as torch_weights
from mambaout_jax.data.prepare import ensure_prepared
from mambaout_jax.evaluate.evaluation import evaluate
from mambaout_jax.export import torch as exchange
from mambaout_jax.export.torch import export_weights, import_weights
from mambaout_jax.report.html import write_report
from mambaout_jax.run.errors import RunError
from mambaout_jax.run.workdir import load_run
from mambaout_jax.tasks.classification.source import open_source
from mambaout_jax.train.loop import train
from mambaout_jax.weights import WeightsError, read_checkpoint
from mambaout_jax.weights.files import write_tensors
from tests.train import written_run

DIGITS = tuple(map(str, range(10)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir with random weights, whose average differs from the raw ones, with its model and weights."""
    workdir = tmp_path_factory.mktemp("exchange") / "run"
    _, model, weights = written_run.write(workdir, DIGITS)
    return workdir, model, weights


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """A folder whose config.json has the model and no classes."""
    folder = tmp_path_factory.mktemp("exported") / "digits"
    export_weights(run[0], str(folder))
    config = json.loads((folder / "config.json").read_text())
    del config["label_names"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["ema", "raw"])
@pytest.mark.parametrize("key_format", ["timm", "mambaout"])
@pytest.mark.parametrize("out", ["digits.safetensors", pytest.param("digits.pth", marks=pytest.mark.torch)])
def test_a_file_and_back_has_the_same_bits(run, tmp_path, out, key_format, weights):
    export_weights(run[0], str(tmp_path / out), key_format=key_format, weights=weights)
    assert left_in(tmp_path) == [out]
    assert_same(mo.from_torch(run[1], tmp_path / out), run[2][weights])


@pytest.mark.slow
def test_folder_round_trip_keeps_classes_and_preprocessing(run, tmp_path):
    said = []
    export_weights(run[0], str(tmp_path / "folder"), log=said.append)
    assert left_in(tmp_path / "folder") == ["config.json", "model.safetensors"]
    import_weights(str(tmp_path / "folder"), tmp_path / "back", log=said.append)
    back = load_run(tmp_path / "back")
    assert_same(back.variables, run[2]["ema"])
    assert back.labels["class_names"] == list(DIGITS)
    assert back.model.options == {**run[1].options, "drop_path_rate": 0.0}
    assert back.model.input_spec == run[1].input_spec
    assert "comparing outputs on 4 random images and 4 of digits" in said
    assert "comparing outputs on 4 random images, because the dataset of the weights is unknown" in said
    assert sum(sentence.endswith("read back: the logits are identical") for sentence in said) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "descriptions"),
    [
        (("n01440764", "n01443537"), ["tench, Tinca tinca", "goldfish, Carassius auratus"]),
        (("n01440764", "carp"), None),
    ],
)
def test_folder_describes_classes_of_imagenet_in_the_words_of_wordnet(tmp_path, names, descriptions):
    written_run.write(tmp_path / "run", names)
    export_weights(tmp_path / "run", str(tmp_path / "out"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["label_names"] == list(names)
    assert config.get("label_descriptions") == (descriptions and dict(zip(names, descriptions, strict=True)))
    assert read_checkpoint(tmp_path / "out").config.class_names == names


@pytest.mark.slow
def test_bfloat16_export_reports_the_rounding_error(run, tmp_path):
    said = []
    export_weights(run[0], str(tmp_path / "half.safetensors"), dtype="bfloat16", log=said.append)
    (cost,) = (sentence for sentence in said if sentence.startswith("rounded to bfloat16: logits change by "))
    assert 0 < float(cost.split()[6]) < 0.1
    written = torch_weights.read_checkpoint(tmp_path / "half.safetensors")
    assert set(written.dtypes.values()) == {"bfloat16"}
    rounded = jax.tree.map(lambda leaf: np.asarray(leaf).astype(bfloat16).astype("float32"), run[2]["ema"])
    assert_same(mo.from_torch(run[1], tmp_path / "half.safetensors"), rounded)


@pytest.mark.run
def test_imported_weights_can_be_evaluated_used_for_prediction_and_fine_tuned(run, exported, tmp_path):
    import_weights(str(exported), tmp_path / "imported")
    config, _, _ = written_run.write(tmp_path / "twin", DIGITS)
    scores = evaluate(config, run[0])["sets"][0]["ema"]
    config = config.replace({"optim.ema_decay": None})
    of_imported = evaluate(config, tmp_path / "imported")
    assert of_imported["sets"][0]["raw"] == scores
    assert of_imported["weights"] == f"imported from {exported}"
    # The same without a workdir, by init_from.
    for source in (exported, tmp_path / "imported"):
        given = evaluate(config.replace({"init_from": str(source)}), tmp_path / "nothing")
        assert given["sets"][0]["raw"] == scores
        assert str(source) in given["weights"]
    assert not (tmp_path / "nothing").exists()


@pytest.mark.run
def test_a_checkpoint_of_the_workdir_wins_over_what_it_started_from(run, exported):
    config = load_run(run[0]).config.replace({"init_from": str(exported.parent / "gone.safetensors")})
    assert evaluate(config, run[0])["weights"] == f"step {written_run.STEP}"


@pytest.mark.run
def test_weights_of_a_thousand_classes_are_imagenets(tmp_path):
    model, said = mo.create_model("test_mambaout"), []
    torch_weights.write_file(tmp_path / "a.safetensors", mo.to_torch(model, model.init(jax.random.key(0))))
    import_weights(str(tmp_path / "a.safetensors"), tmp_path / "imported", log=said.append)
    assert any("has no preprocessing settings; assuming 160x160 pixels" in sentence for sentence in said)
    imported = load_run(tmp_path / "imported")
    assert imported.labels["class_names"][:2] == ["n01440764", "n01443537"]
    assert imported.config.data.name == "imagenet2012"


@pytest.mark.run
def test_a_run_cannot_resume_in_a_workdir_of_imported_weights(exported, tmp_path):
    import_weights(str(exported), tmp_path / "imported")
    config, _, _ = written_run.write(tmp_path / "twin", DIGITS)
    with pytest.raises(RunError, match=r"has imported weights.*config\.init_from="):
        train(config, tmp_path / "imported")
    with pytest.raises(RunError, match="has imported weights"):
        write_report(tmp_path / "imported")


@pytest.mark.run
def test_what_exists_is_replaced_only_with_force_and_a_run_never(run, exported, tmp_path):
    target = tmp_path / "imported"
    import_weights(str(exported), target)
    with pytest.raises(RunError, match="exists; use another folder, or replace it with --force"):
        import_weights(str(exported), target)
    import_weights(str(exported), target, force=True)
    assert left_in(tmp_path) == ["imported"]
    with pytest.raises(RunError, match="has files other than imported weights"):
        import_weights(str(exported), run[0], force=True)
    file = tmp_path / "digits.safetensors"
    export_weights(run[0], str(file))
    with pytest.raises(WeightsError, match="exists"):
        export_weights(run[0], str(file))
    export_weights(run[0], str(file), force=True)


@pytest.mark.slow
@pytest.mark.parametrize("out", ["a.safetensors", "a"])
def test_a_file_that_came_out_wrong_is_not_kept(run, tmp_path, monkeypatch, out):
    def write(path, tensors):
        bias = tensors["head.norm.bias"]
        write_tensors(path, {**tensors, "head.norm.bias": np.roll(bias, 1)})

    for module in ("files", "folder"):
        monkeypatch.setattr(f"mambaout_jax.weights.{module}.write_tensors", write)
    with pytest.raises(WeightsError, match=r"read back: the logits differ by .*, where at most 0\.0001 is allowed"):
        export_weights(run[0], str(tmp_path / out))
    assert left_in(tmp_path) == []


@pytest.mark.run
def test_a_layer_that_is_swapped_is_found_by_its_logits(run, exported, tmp_path, monkeypatch):
    load = exchange.restore_run

    def swapped(path, weights=None):
        run = load(path, weights)
        block = run.variables["params"]["stages"][0]["blocks"][0]
        block["norm"]["weight"], block["norm"]["bias"] = block["norm"]["bias"], block["norm"]["weight"]
        return run

    monkeypatch.setattr(exchange, "restore_run", swapped)
    with pytest.raises(WeightsError, match="read back: the logits differ by"):
        import_weights(str(exported), tmp_path / "imported")
    assert left_in(tmp_path) == []


@pytest.mark.torch
@pytest.mark.parametrize("key_format", ["timm", "mambaout"])
@pytest.mark.parametrize("out", ["a.safetensors", "a.pth", "a"])
def test_the_live_timm_agrees(run, tmp_path, out, key_format):
    from tests.timm import load_timm

    load_timm()
    said = []
    options = {"key_format": key_format, "verify_timm": True, "log": said.append}
    if out == "a" and key_format == "mambaout":
        with pytest.raises(WeightsError, match="folder in timm's format, which requires key format 'timm'"):
            export_weights(run[0], str(tmp_path / out), **options)
        return
    export_weights(run[0], str(tmp_path / out), **options)
    assert sum(sentence.startswith("timm 1.") for sentence in said) == 1


@pytest.mark.torch
def test_the_live_timm_agrees_with_what_is_imported(exported, tmp_path):
    from tests.timm import load_timm

    load_timm()
    said = []
    import_weights(str(exported), tmp_path / "back", verify_timm=True, log=said.append)
    assert sum(sentence.startswith("timm 1.") for sentence in said) == 1


@pytest.mark.slow
def test_environment_has_the_source_of_imported_weights(exported, tmp_path):
    import_weights(str(exported), tmp_path / "imported")
    environment = json.loads((tmp_path / "imported" / "environment.json").read_text())
    assert environment == {"imported_from": str(exported), "labels": {"num_classes": 10, "class_names": None}}
    ensure_prepared("digits")
    source = open_source("digits", "validation")
    assert source.class_names == DIGITS  # the names of a dataset match weights without class names
