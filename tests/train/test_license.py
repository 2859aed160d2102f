"""A license that forbids commercial use is stated where weights are loaded, and goes into what is made of them."""

import json

import pytest
from PIL import Image

import mambaout_jax as mo
from mambaout_jax.__main__ import main
from mambaout_jax.evaluate.evaluation import evaluate
from mambaout_jax.export.torch import export_weights, import_weights
from mambaout_jax.run.pretrained import load_pretrained_for
from mambaout_jax.run.workdir import load_environment, restore_run
from mambaout_jax.train.loop import train
from mambaout_jax.weights import find_license
from mambaout_jax.weights.folder import write_folder
from tests.train import tiny, written_run
from tests.weights import pytorch

RESTRICTED = "CC-BY-NC-SA-4.0"
DIGITS = tuple(map(str, range(10)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Weights with a license, as their authors could publish them."""
    parent = tmp_path_factory.mktemp("license")
    _, model, weights = written_run.write(parent / "run", DIGITS)
    state_dict = mo.to_torch(model, weights["raw"])
    write_folder(parent / "model", model, state_dict, class_names=DIGITS, license=RESTRICTED)
    return parent / "model"


@pytest.fixture(scope="module")
def imported(folder):
    """The workdir of the weights, and what was said about it."""
    said = []
    import_weights(str(folder), folder.parent / "imported", log=said.append)
    return folder.parent / "imported", said


def notices(said):
    return [sentence for sentence in said if "cc-by-nc-sa-4.0, which forbids commercial use" in sentence]


@pytest.mark.slow
def test_loading_weights_warns(folder, imported):
    model = restore_run(imported[0]).model
    for load in (mo.load_pretrained, lambda source: mo.from_torch(model, source), mo.load_run):
        with pytest.warns(UserWarning, match="cc-by-nc-sa-4.0, which forbids commercial use") as caught:
            load(imported[0] if load is mo.load_run else folder)
        assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.slow
def test_a_workdir_of_imported_weights_has_the_license_and_passes_it_on(imported, tmp_path):
    workdir, said = imported
    assert len(notices(said)) == 1
    assert load_environment(workdir)["license"] == restore_run(workdir).license == RESTRICTED.lower()
    said = []
    export_weights(workdir, str(tmp_path / "model"), log=said.append)
    assert len(notices(said)) == 1
    assert json.loads((tmp_path / "model" / "config.json").read_text())["pretrained_cfg"]["license"] == (
        RESTRICTED.lower()
    )


@pytest.mark.slow
def test_prediction_and_evaluation_with_imported_weights_say_so_once(imported, tmp_path, capsys):
    image = tmp_path / "image.png"
    Image.new("L", (8, 8)).save(image)
    assert main(["predict", str(imported[0]), str(image), "--json"]) == 0
    captured = capsys.readouterr()
    json.loads(captured.out)
    assert captured.err.count("which forbids commercial use") == 1
    config, _, _ = written_run.write(tmp_path / "twin", DIGITS)
    evaluate(config.replace({"optim.ema_decay": None}), imported[0])
    assert capsys.readouterr().err.count("which forbids commercial use") == 1


@pytest.mark.slow
def test_an_exported_file_is_said_to_lack_the_license(imported, tmp_path):
    said = []
    export_weights(imported[0], str(tmp_path / "model.safetensors"), log=said.append)
    assert any("a file does not record it" in sentence for sentence in notices(said))


@pytest.mark.slow
def test_pretrained_weights_have_their_license_from_a_folder_and_from_a_workdir(folder, imported):
    for source in (folder, imported[0]):
        model = tiny.config().build_task().build_model({"class_names": list(DIGITS)})
        assert load_pretrained_for(source, model).license == RESTRICTED.lower()


@pytest.mark.slow
def test_weights_of_a_run_from_scratch_have_no_license(folder, tmp_path):
    export_weights(folder.parent / "run", str(tmp_path / "model"))
    assert "license" not in json.loads((tmp_path / "model" / "config.json").read_text())["pretrained_cfg"]


def test_a_file_without_config_is_taken_to_be_the_published_one_if_that_is_restricted():
    file = pytorch.checkpoint_of({})
    assert find_license(file, "mambavision_t") == RESTRICTED
    assert find_license(file, "mambaout_tiny") is None


@pytest.mark.run
def test_a_run_from_restricted_weights_says_so_and_has_the_license_after_it_was_resumed(imported, tmp_path, capsys):
    workdir = tmp_path / "run"
    for epochs in (1, 2):
        train(tiny.config(init_from=str(imported[0]), num_epochs=epochs, resume="any"), workdir)
        assert "which forbids commercial use" in capsys.readouterr().err
        assert load_environment(workdir)["license"] == RESTRICTED.lower()
