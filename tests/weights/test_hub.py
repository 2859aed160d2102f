"""Hub ids: downloaded once, then read from the cache, and errors are one sentence."""

import json
import os
import socket
import subprocess
import sys

import pytest

from mambaout_jax.weights.checkpoint import read_checkpoint
from mambaout_jax.weights.errors import WeightsError
from mambaout_jax.weights.files import write_file
from tests.weights.hub_server import COMMIT, serve
from tests.weights.test_files import assert_same
from tests.weights.test_folder import CONFIG, TENSORS

ID = "hf-hub:timm/mambaout_femto.in1k"
REPOSITORY = "timm/mambaout_femto.in1k"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    write_file(path, TENSORS)
    return path.read_bytes()


@pytest.fixture
def files(weights):
    return {
        (REPOSITORY, "main", "config.json"): json.dumps(CONFIG).encode(),
        (REPOSITORY, "main", "model.safetensors"): weights,
    }


@pytest.fixture
def use(tmp_path, monkeypatch):
    """Return a function that makes the client ask a server, with an empty cache."""
    from huggingface_hub import constants

    def point(url):
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)

    return point


@pytest.fixture
def nobody():
    """Return the address of a server that is not there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def assert_read(source=ID):
    found = read_checkpoint(source)
    assert found.origin == source
    assert found.config.architecture == "mambaout_femto"
    assert_same(found.tensors, TENSORS)


def assert_refused(source, words):
    with pytest.raises(WeightsError, match=words) as refusal:
        read_checkpoint(source)
    assert str(refusal.value).startswith(source)
    assert len(str(refusal.value).splitlines()) == 1


def test_a_model_is_fetched_once_and_comes_from_the_cache_after_that(files, use, nobody, monkeypatch):
    from huggingface_hub import constants

    with serve(files) as hub:
        use(hub.url)
        assert_read()
        assert_read(ID.replace("-", "_", 1))
        fetched = [line for line in hub.asked if line.startswith("GET") and "/resolve/" in line]
        assert len(fetched) == len(set(fetched)) == 2
    assert_read()  # the server is gone
    use(nobody)
    assert_read()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_read()


def test_offline_mode_asks_nobody(files, use, monkeypatch):
    from huggingface_hub import constants

    with serve(files) as hub:
        use(hub.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert_refused(ID, "config.json is not in the cache, and HF_HUB_OFFLINE is set")
        assert hub.asked == []


@pytest.mark.parametrize("revision", ["v2", "refs", COMMIT])
def test_a_revision_is_asked_for_as_it_is_named(files, use, revision):
    files = {(name, revision, file): content for (name, _, file), content in files.items()}
    with serve(files) as hub:
        use(hub.url)
        assert_read(f"{ID}@{revision}")
        assert_refused(ID, "revision 'main' does not exist; expected a branch, tag or commit")


def test_weights_under_an_older_name_are_taken_also_from_the_cache(files, use, nobody):
    files[REPOSITORY, "main", "pytorch_model.bin"] = files.pop((REPOSITORY, "main", "model.safetensors"))
    with serve(files) as hub:
        use(hub.url)
        assert_read()
    use(nobody)
    assert_read()


@pytest.mark.parametrize(
    ("file", "answer", "words"),
    [
        ("config.json", None, "has no config.json; expected config.json and model.safetensors in timm's format"),
        ("model.safetensors", None, "has no model.safetensors; expected config.json and"),
        ("config.json", (403, "GatedRepo"), "is gated; accept its terms on the hub and log in with `hf auth login` or"),
        (
            "config.json",
            (401, ""),
            r"is not accessible \(status 401\); log in with|is private; check the name, or log in",
        ),
        ("config.json", (403, ""), r"is not accessible \(status 403\); log in with"),
        (
            "config.json",
            (500, ""),
            "config.json is not in the cache, and http.* responds with status 500; try again later",
        ),
        ("config.json", b"{", "config.json is not valid JSON"),
    ],
)
def test_what_a_hub_refuses_is_said(files, use, file, answer, words):
    files[REPOSITORY, "main", file] = answer
    if answer is None:
        del files[REPOSITORY, "main", file]
        files[REPOSITORY, "main", "README.md"] = b""
    with serve(files) as hub:
        use(hub.url)
        assert_refused(ID, words)


def test_a_model_that_does_not_exist_is_said(files, use):
    with serve(files) as hub:
        use(hub.url)
        assert_refused("hf-hub:timm/nothing", "does not exist, or is private; check the name, or log in with")
        assert_refused(f"{ID}@v9", "revision 'v9' does not exist; expected a branch, tag or commit")


def test_a_hub_that_nobody_reaches_is_said_without_trying_again(use, nobody, monkeypatch):
    slept = []
    monkeypatch.setattr("time.sleep", slept.append)
    use(nobody)
    assert_refused(ID, f"config.json is not in the cache, and {nobody} cannot be reached .*; check the network")
    assert slept == []


def test_a_hub_that_never_answers_is_given_up_soon(use, monkeypatch):
    monkeypatch.setattr("mambaout_jax.weights.hub._TIMEOUT_SECONDS", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        use(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert_refused(ID, "config.json is not in the cache, and .* cannot be reached")


@pytest.mark.parametrize(
    "name", ["", "timm", "timm/", "a/b/c", "a b/c", "timm/x@", "timm/x@a@b", "t/x..y", "é/x", "t/-x"]
)
def test_a_malformed_id_is_refused_without_asking(use, nobody, name):
    use(nobody)
    assert_refused(f"hf-hub:{name}", "is not a hub id")


def test_a_damaged_download_names_the_file_in_the_cache(files, use, tmp_path):
    files[REPOSITORY, "main", "model.safetensors"] = files[REPOSITORY, "main", "model.safetensors"][:-1]
    with serve(files) as hub:
        use(hub.url)
        with pytest.raises(
            WeightsError, match=f"^{tmp_path}/cache/.*model.safetensors is a damaged or truncated safetensors file"
        ):
            read_checkpoint(ID)


@pytest.mark.run
def test_the_clients_own_settings_hold_and_pipes_stay_quiet(files, tmp_path):
    script = (
        "import sys\n"
        "from mambaout_jax.weights.checkpoint import read_checkpoint\n"
        "found = read_checkpoint(sys.argv[1])\n"
        "print(found.config.architecture, *found.tensors)\n"
    )
    settings = {
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    with serve(files) as hub:
        command, environment = [sys.executable, "-c", script, ID], {**os.environ, **settings, "HF_ENDPOINT": hub.url}
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert (run.stdout, run.stderr) == ("mambaout_femto stem.weight\n", "")
        assert hub.asked
        hub.asked.clear()
        environment["HF_HUB_OFFLINE"] = "1"
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert (run.stdout, run.stderr) == ("mambaout_femto stem.weight\n", "")
        assert hub.asked == []
