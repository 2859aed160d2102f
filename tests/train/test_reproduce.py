"""Published weights are downloaded once, checked against their digest, and scored against their published accuracy."""

import hashlib
import json
import sys
import threading
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from safetensors.numpy import load_file

import mambaout_jax as mo
from mambaout_jax.__main__ import main
from mambaout_jax.data import DataError
from mambaout_jax.evaluate.reproduce import reproduce
from mambaout_jax.extras import MissingExtraError
from mambaout_jax.models import Checkpoint, registry
from mambaout_jax.run.workdir import load_run
from mambaout_jax.weights import WeightsError, write_file
from tests.data import small_eval_sets

NAME = "test_mambaout"
LABELS = [5, 7, 7, 300, 12, 0, 999]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    tfds.disable_progress_bar()
    folder = tmp_path_factory.mktemp("sets")
    small_eval_sets.write("imagenet2012", folder, LABELS)
    return str(folder)


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Publish random weights of the model on a local server; return the file and the paths that are requested."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = mo.create_model(NAME)
    file = tmp_path / "published" / "weights.safetensors"
    file.parent.mkdir()
    write_file(file, mo.to_torch(model, model.init(jax.random.key(0))))
    requested = []

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=file.parent)

        def do_GET(self):
            requested.append(self.path)
            super().do_GET()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    publish(monkeypatch, f"http://127.0.0.1:{server.server_port}/{file.name}", digest_of(file))
    yield file, requested
    server.shutdown()
    server.server_close()
    thread.join()


def digest_of(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


def publish(monkeypatch, url, sha256, top1=0.1, entry=None):
    family = registry.find_family(NAME)
    variant = replace(family.variants[NAME], checkpoint=Checkpoint(url, "MIT", sha256, entry), top1={160: top1})
    changed = replace(family, variants={**family.variants, NAME: variant})
    monkeypatch.setattr(
        registry, "BUILT_IN", tuple(changed if other is family else other for other in registry.BUILT_IN)
    )


@pytest.mark.slow
def test_the_score_is_that_of_the_imported_weights_and_a_second_call_downloads_nothing(served, data_dir, tmp_path):
    file, requested = served
    said = []
    record = reproduce(NAME, tmp_path / "run", data_dir=data_dir, log=said.append)
    assert record["sha256"] == digest_of(file)
    assert (record["count"], record["size"], record["published_top1"], record["license"]) == (
        len(LABELS),
        160,
        0.1,
        "MIT",
    )
    assert "MIT" in said[0]
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["imported_from"]
    again = reproduce(NAME, tmp_path / "run", data_dir=data_dir, force=True)
    assert again == record
    assert requested == [f"/{file.name}"]


def test_a_file_that_requires_pytorch_is_not_downloaded_without_it(served, data_dir, tmp_path, monkeypatch):
    _, requested = served
    publish(monkeypatch, "http://127.0.0.1:9/weights.pth", None)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"weights.pth requires PyTorch"):
        reproduce(NAME, tmp_path / "run", data_dir=data_dir)
    assert not requested


@pytest.mark.torch
def test_the_entry_with_the_published_accuracy_is_imported(served, data_dir, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    file, _ = served
    state_dict = {key: torch.from_numpy(value) for key, value in load_file(file).items()}
    average = {key: value + 1 for key, value in state_dict.items()}
    torch.save({"model": state_dict, "model_ema": average}, file)
    url = registry.find_family(NAME).variants[NAME].checkpoint.url
    scores = {}
    for entry in (None, "model"):
        publish(monkeypatch, url, None, entry=entry)
        reproduce(NAME, tmp_path / "run", data_dir=data_dir, force=True)
        scores[entry] = load_run(tmp_path / "run").variables["params"]["head"]["fc"]["bias"]
    np.testing.assert_array_equal(scores["model"], state_dict["head.fc.bias"])
    np.testing.assert_array_equal(scores[None], average["head.fc.bias"])


def test_the_accuracy_of_vmamba_is_that_of_its_average_except_for_the_first_tiny_model():
    family = registry.find_family("vmamba_tiny_v0")
    entries = {name: variant.checkpoint.entry for name, variant in family.variants.items()}
    assert {name for name, entry in entries.items() if entry == "model"} == {"vmamba_tiny_v0"}
    assert set(entries.values()) == {None, "model"}


def test_the_accuracy_of_vim_is_that_of_its_raw_weights():
    assert {variant.checkpoint.entry for variant in registry.find_family("vim_tiny").variants.values()} == {"model"}


@pytest.mark.slow
@pytest.mark.parametrize("characters", [8, 64])
def test_a_file_with_another_digest_is_neither_used_nor_kept(served, data_dir, tmp_path, monkeypatch, characters):
    file, _ = served
    url = registry.find_family(NAME).variants[NAME].checkpoint.url
    publish(monkeypatch, url, "0" * characters)
    with pytest.raises(WeightsError, match=f"SHA-256 {digest_of(file)}; expected 0+"):
        reproduce(NAME, tmp_path / "run", data_dir=data_dir)
    assert not (tmp_path / "run").exists()
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_an_absent_file_is_one_sentence(served, data_dir, tmp_path, monkeypatch):
    url = registry.find_family(NAME).variants[NAME].checkpoint.url
    publish(monkeypatch, url.replace("weights", "gone"), None)
    with pytest.raises(WeightsError, match=r"gone\.safetensors: the download failed \(.*404"):
        reproduce(NAME, tmp_path / "run", data_dir=data_dir)


def test_the_dataset_is_looked_for_before_the_download(served, tmp_path):
    _, requested = served
    with pytest.raises(DataError):
        reproduce(NAME, tmp_path / "run", data_dir=str(tmp_path / "nothing"))
    assert not requested


def test_a_variant_without_published_weights_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="no weights of mamba_femto"):
        reproduce("mamba_femto", tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(("tolerance", "code", "verdict"), [("100", 0, ": reproduced"), ("0", 1, ": not reproduced")])
def test_the_exit_code_says_whether_the_accuracy_was_reproduced(
    served, data_dir, tmp_path, monkeypatch, capsys, tolerance, code, verdict
):
    checkpoint = registry.find_family(NAME).variants[NAME].checkpoint
    publish(monkeypatch, checkpoint.url, checkpoint.sha256, top1=99.9)
    out = ["--out", str(tmp_path / "run"), "--data-dir", data_dir, "--tolerance", tolerance]
    assert main(["reproduce", NAME, *out]) == code
    assert verdict in capsys.readouterr().out
