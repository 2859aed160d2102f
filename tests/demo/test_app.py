"""The Gradio app shows one or two models, answers programs, and needs no network."""

import contextlib
import importlib
import importlib.util
import io
import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from mambaout_jax.__main__ import main
from mambaout_jax.demo.inspection import Inspector, _pictures_of
from mambaout_jax.export.errors import ExportError
from mambaout_jax.extras import install_command
from tests.demo.test_site import BROWSER, photo, png
from tests.export.test_programs import segmentation, workdir  # noqa: F401 - fixtures

with_gradio = [
    pytest.mark.nightly,  # which installs gradio
    pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="gradio is not installed"),
    pytest.mark.filterwarnings("ignore"),  # of gradio and its dependencies, which differ between versions
]


@contextlib.contextmanager
def serving(*arguments):
    """Serve the app in a process of its own; yield the process and its address."""
    command = [sys.executable, "-m", "mambaout_jax", "demo", *map(str, arguments), "--gradio", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process, re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())[0]
        finally:
            process.kill()


@pytest.fixture(scope="module")
def address(workdir, segmentation):  # noqa: F811
    """The address of an app with a classifier and a segmentation model."""
    with serving(workdir, segmentation) as (_, found):
        yield found


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(photo(60, 80)))
    return path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["runs/a", "runs/b"], "the page has one model; give one WORKDIR, or add --gradio"),
        (["runs/a", "--gradio", "--static=site"], "--static, --runtime, --img-size and --force belong to the page"),
        (["runs/a", "--gradio", "--runtime=dist"], "--static, --runtime, --img-size and --force belong to the page"),
        (["runs/a", "--gradio", "--img-size=64"], "--static, --runtime, --img-size and --force belong to the page"),
        (["runs/a", "--gradio", "--force"], "--static, --runtime, --img-size and --force belong to the page"),
    ],
)
def test_wrong_arguments_are_one_sentence(capsys, arguments, words):
    assert main(["demo", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_without_gradio_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo", "runs/a", "--gradio"]) == 2
    assert capsys.readouterr().err == f"error: demo --gradio requires gradio; {install_command('demo')}\n"
    monkeypatch.delitem(sys.modules, "mambaout_jax.demo.app", raising=False)
    with pytest.raises(ImportError, match=r'demo.app requires gradio \(.*\); pip install ".*\[demo\]"'):
        importlib.import_module("mambaout_jax.demo.app")


def test_pictures_of_predictions_are_shown_at_most_at_1024_pixels():
    """Label maps keep their numbers."""
    labels = Image.fromarray(np.repeat(np.arange(4, dtype=np.uint8), 1000)[None].repeat(50, 0))
    labels.putpalette([0, 0, 0] * 4)
    file = io.BytesIO()
    labels.save(file, "PNG")
    small = png(photo(60, 80))
    found = _pictures_of({"_labels.png": file.getvalue(), "_overlay.png": small, "_classes.json": b"{}"})
    assert [picture.caption for picture in found] == ["labels", "overlay"]
    assert found[1].content == small
    with Image.open(io.BytesIO(found[0].content)) as shown:
        assert (shown.mode, shown.size) == ("P", (1024, 13))
        assert sorted(set(np.asarray(shown).ravel())) == [0, 1, 2, 3]


class TestApp:
    """What a person or a program gets from the app."""

    pytestmark = with_gradio

    @pytest.mark.parametrize("workdirs", [[], ["runs/a", "runs/b", "runs/c"]])
    def test_one_or_two_models_are_shown(self, workdirs):
        from mambaout_jax.demo.app import build_app

        with pytest.raises(ExportError, match=f"the app shows one or two models, not {len(workdirs)}"):
            build_app(workdirs)

    def test_a_workdir_without_a_run_is_named(self, tmp_path):
        from mambaout_jax.demo.app import build_app

        with pytest.raises(ValueError, match="is not the workdir of a run"):
            build_app(str(tmp_path))

    def test_a_port_that_is_taken_is_named(self, address, workdir):  # noqa: F811
        port = address.strip("/").rpartition(":")[2]
        command = [sys.executable, "-m", "mambaout_jax", "demo", str(workdir), "--gradio", f"--port={port}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 2
        assert f"port {port} cannot be used" in done.stderr

    def test_a_program_gets_the_results_of_both_models(self, address, picture, workdir, segmentation):  # noqa: F811
        from gradio_client import Client, handle_file

        client = Client(address, verbose=False)
        image = picture.read_bytes()
        inspectors = [Inspector(str(folder)) for folder in (workdir, segmentation)]
        for method in ("predict", "feature_maps", "receptive_fields"):
            found = client.predict(handle_file(picture), api_name=f"/{method}")
            assert found.count("<h3>") == 2
            for inspector in inspectors:
                shown = getattr(inspector, method)(image)
                assert all(content.url in found for line in shown.pictures for content in line)
                assert all(f"{100 * row.share:.1f} %" in found for row in shown.rows)

    def test_what_is_no_picture_is_a_message(self, address, tmp_path):
        from gradio_client import Client, handle_file
        from gradio_client.exceptions import AppError

        client = Client(address, verbose=False)
        (tmp_path / "a.png").write_bytes(b"no picture")
        (tmp_path / "b.png").write_bytes(png(photo(60, 80))[:200])
        for name, words in (("a.png", "its format is unknown"), ("b.png", "Pillow cannot decode the image")):
            with pytest.raises(AppError, match=words):
                client.predict(handle_file(tmp_path / name), api_name="/predict")

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 128 + signal.SIGTERM)])
    def test_the_command_ends_quietly_while_it_computes(self, workdir, picture, number, code):  # noqa: F811
        from gradio_client import Client, handle_file

        with serving(workdir) as (process, address):
            client = Client(address, verbose=False)
            client.submit(handle_file(picture), api_name="/receptive_fields")
            time.sleep(2)  # the compilation takes longer
            process.send_signal(number)
            _, errors = process.communicate(timeout=120)
        assert process.returncode == code, errors
        assert not re.search("Traceback|terminate|FATAL", errors)

    def test_no_usage_data_is_sent(self, address):
        from urllib.request import urlopen

        config = json.load(urlopen(f"{address.rstrip('/')}/config"))
        assert config["analytics_enabled"] is False

    @pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
    @pytest.mark.parametrize("width", [1280, 390])
    def test_the_page_shows_everything_without_a_network(self, address, picture, width):
        from playwright.sync_api import sync_playwright

        foreign, errors = [], []
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=BROWSER,
                args=["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
            )
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.on("request", lambda request: foreign.append(request.url))
            page.goto(address)
            page.set_input_files("input[type=file]", picture, timeout=60_000)
            page.wait_for_function("document.querySelectorAll('section.inspection').length === 4", timeout=300_000)
            titles = page.locator("section.inspection h2").all_inner_texts()
            assert [title.split("  ")[0][:12] for title in titles] == ["Prediction", "Feature maps", "Effective re"]
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            page.locator("button[aria-label='Remove Image']").click()
            page.wait_for_function("document.querySelectorAll('section.inspection h2').length === 0", timeout=60_000)
            browser.close()
        assert not errors
        assert [url for url in foreign if not url.startswith((address, "data:", "blob:"))] == []
