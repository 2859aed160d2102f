"""The page of a demo computes in a browser what the model computes here."""

import io
import shutil
import threading

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mambaout_jax.__main__ import main
from mambaout_jax.demo import runtime
from mambaout_jax.demo.runtime import FILES, find_runtime
from mambaout_jax.demo.site import _check_page, serve, write_site
from mambaout_jax.export.errors import ExportError
from mambaout_jax.run.workdir import load_run
from mambaout_jax.tasks.api import stack_examples
from mambaout_jax.tasks.images import resize_image
from tests.export.test_programs import NAMES, detector, segmentation, workdir  # noqa: F401 - fixtures

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
in_browser = [
    pytest.mark.run,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed"),
    pytest.mark.skipif(shutil.which("npm") is None, reason="npm, which downloads onnxruntime-web, is not installed"),
]


# Points of the strokes of digits, in shares of the canvas.
STROKES = {
    "1": [[(0.38, 0.3), (0.52, 0.14), (0.52, 0.86)]],
    "2": [[(0.32, 0.3), (0.4, 0.18), (0.52, 0.13), (0.66, 0.22), (0.64, 0.4), (0.48, 0.62), (0.3, 0.84), (0.72, 0.84)]],
    "4": [[(0.5, 0.12), (0.28, 0.58), (0.72, 0.58)], [(0.62, 0.4), (0.58, 0.88)]],
    "7": [[(0.28, 0.16), (0.7, 0.16), (0.5, 0.5), (0.42, 0.86)], [(0.32, 0.52), (0.66, 0.52)]],
}


@pytest.fixture
def empty_runtime(tmp_path):
    """A folder with empty files in place of the runtime."""
    folder = tmp_path / "runtime"
    folder.mkdir()
    for name in FILES:
        (folder / name).touch()
    return str(folder)


@pytest.fixture
def open_page():
    """Return a function that serves a site and opens it in a browser, and a list of the errors on the page."""
    from playwright.sync_api import sync_playwright

    servers, errors = [], []
    with sync_playwright() as playwright:
        camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", *camera])

        def open_site(site):
            servers.append(serve(site, 0))
            threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
            page = browser.new_page(viewport={"width": 900, "height": 700})
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
            page.goto(f"http://127.0.0.1:{servers[-1].server_port}/")
            page.wait_for_function("document.getElementById('status').textContent.startsWith('Draw')", timeout=120_000)
            return page

        yield open_site, errors
        browser.close()
    for server in servers:
        server.shutdown()
        server.server_close()


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def photo(height, width):
    rows, columns = np.mgrid[:height, :width]
    waves = [127 + 120 * np.sin(rows / (5 + i)) * np.cos(columns / (7 + 2 * i)) for i in range(3)]
    return np.stack(waves, -1).astype(np.uint8)


def wait_for_prediction(page, number=1):
    page.wait_for_function(
        "n => Number(document.getElementById('status').dataset.predictions) >= n", arg=number, timeout=120_000
    )


def compute_pixels(page, picture):
    """Return the pixels and the outputs that a page computes from a picture."""
    rgba = np.dstack([picture, np.full(picture.shape[:2], 255, np.uint8)])
    return page.evaluate(
        """async ([data, height, width]) => {
          const demo = await import("./demo.js");
          const pixels = demo.prepare({ data: Uint8ClampedArray.from(data), height, width });
          const outputs = await demo.run(pixels);
          for (const name in outputs) outputs[name] = Array.from(outputs[name], Number);
          return [Array.from(pixels), outputs];
        }""",
        [rgba.ravel().tolist(), *picture.shape[:2]],
    )


class TestPage:
    """What a person does on the page."""

    pytestmark = in_browser

    def test_pixels_and_logits_are_those_of_the_evaluation(self, workdir, tmp_path, open_page):  # noqa: F811
        open_site, errors = open_page
        run = load_run(workdir)
        page = open_site(write_site(str(workdir), str(tmp_path / "demo")))
        for size in ((100, 80), (40, 130), (32, 32), (20, 25), (2, 900)):
            picture = photo(*size)
            found, outputs = compute_pixels(page, picture)
            predictor = run.task.predictor(run.model, run.labels)
            expected = stack_examples(predictor, [predictor.prepare(png(picture))], 1)["image"]
            pixels = np.array(found, np.uint8).reshape(expected.transpose(0, 3, 1, 2).shape).transpose(0, 2, 3, 1)
            assert np.abs(pixels.astype(int) - expected.astype(int)).max() <= 1  # sums in another precision
            assert np.mean(pixels != expected) < 0.01
            logits = run.model.apply(run.variables, run.model.input_spec.normalize(jnp.asarray(pixels)))
            np.testing.assert_allclose(outputs["logits"], logits[0], rtol=0, atol=1e-5 * float(jnp.abs(logits).max()))
        assert not errors

    def test_a_drawing_and_a_file_are_classified(self, workdir, tmp_path, open_page):  # noqa: F811
        open_site, errors = open_page
        page = open_site(write_site(str(workdir), str(tmp_path / "demo")))
        box = page.locator("#input").bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 5)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 4 * box["height"] / 5, steps=5)
        page.mouse.up()
        wait_for_prediction(page)
        assert page.locator("#classes li").count() == 5
        page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": png(photo(60, 80))})
        wait_for_prediction(page, 2)
        page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": png(photo(60, 80))})
        wait_for_prediction(page, 3)
        page.click("#clear")
        assert page.locator("#classes li").count() == 0
        page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": b"no picture"})
        page.wait_for_function("document.getElementById('status').textContent.includes('is not a picture')")
        assert not errors

    def test_the_webcam_is_classified_until_it_is_stopped(self, workdir, tmp_path, open_page):  # noqa: F811
        open_site, errors = open_page
        page = open_site(write_site(str(workdir), str(tmp_path / "demo")))
        page.click("#camera")
        wait_for_prediction(page, 3)
        assert page.inner_text("#camera") == "Stop"
        page.click("#camera")
        assert page.inner_text("#camera") == "Webcam"
        # A camera that opens after the page was cleared is not used.
        page.evaluate("document.getElementById('camera').click(); document.getElementById('clear').click()")
        before = int(page.get_attribute("#status", "data-predictions"))
        page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": png(photo(60, 80))})
        wait_for_prediction(page, before + 1)
        page.wait_for_timeout(500)
        assert int(page.get_attribute("#status", "data-predictions")) <= before + 2
        assert page.evaluate("document.getElementById('input').width") == 80
        assert page.inner_text("#camera") == "Webcam"
        assert not errors

    @pytest.mark.nightly
    def test_drawn_digits_are_recognised(self, tmp_path, open_page):
        """By the model of the README's first command."""
        open_site, errors = open_page
        assert main(["train", "--config=digits", f"--workdir={tmp_path / 'run'}"]) == 0
        page = open_site(write_site(str(tmp_path / "run"), str(tmp_path / "demo")))
        box, predictions = page.locator("#input").bounding_box(), 0
        for digit, strokes in STROKES.items():
            page.click("#clear")
            for start, *rest in strokes:
                page.mouse.move(box["x"] + start[0] * box["width"], box["y"] + start[1] * box["height"])
                page.mouse.down()
                for x, y in rest:
                    page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=3)
                page.mouse.up()
                predictions += 1
                wait_for_prediction(page, predictions)
            assert page.locator("#classes li").first.inner_text().split()[0] == digit
        assert not errors

    @pytest.mark.nightly
    def test_a_picture_is_segmented(self, segmentation, tmp_path, open_page):  # noqa: F811
        open_site, errors = open_page
        page = open_site(write_site(str(segmentation), str(tmp_path / "demo")))
        page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": png(photo(60, 80))})
        wait_for_prediction(page)
        shares = [float(text.removesuffix(" %")) for text in page.locator("#classes .number").all_inner_texts()]
        assert sum(shares) == pytest.approx(100, abs=0.2)
        assert page.evaluate("document.getElementById('overlay').width") == 64
        picture = photo(60, 80)
        found, _ = compute_pixels(page, picture)
        expected = resize_image(np.asarray(picture), (64, 64))
        pixels = np.array(found, np.uint8).reshape(3, 64, 64).transpose(1, 2, 0)
        assert np.abs(pixels.astype(int) - expected.astype(int)).max() <= 1
        assert not errors

    @pytest.mark.nightly
    def test_objects_of_a_picture_are_found(self, detector, tmp_path, open_page):  # noqa: F811
        open_site, errors = open_page
        page = open_site(write_site(str(detector), str(tmp_path / "demo")))
        picture = photo(60, 80)
        pixels, outputs = compute_pixels(page, picture)
        run = load_run(detector)
        images = jnp.asarray(np.array(pixels, np.uint8).reshape(1, 3, 64, 64).transpose(0, 2, 3, 1))
        images = run.model.input_spec.normalize(images)
        expected = run.task.exported_outputs(run.model, run.variables, images)
        expected = {name: np.asarray(x) for name, x in expected.items()}
        found = {name: np.array(outputs[name]).reshape(x.shape) for name, x in expected.items()}
        for name, x in run.task.align_outputs(found, expected).items():
            np.testing.assert_allclose(x, expected[name], rtol=0, atol=1e-4 * np.abs(expected[name]).max())
        page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": png(picture)})
        wait_for_prediction(page)
        sure = int((expected["scores"] >= 0.5).sum())
        assert sure > 0
        assert page.locator("#classes li").count() == min(sure, 20)
        assert "no object found" not in page.inner_text("#status")
        # The border of the best box is drawn, in the coordinates of the picture.
        x1, y1, x2, _ = expected["boxes"][0, 0] / 64
        drawn = page.evaluate(
            """([x, y]) => {
              const overlay = document.getElementById("overlay"), around = 6;
              const [left, top] = [x * overlay.width - around, y * overlay.height - around];
              const { data } = overlay.getContext("2d").getImageData(left, top, 2 * around, 2 * around);
              return data.some((value, i) => i % 4 === 3 && value === 255);
            }""",
            [float(x1 + x2) / 2, float(y1)],
        )
        assert drawn
        assert not errors

    def test_a_page_without_a_server_says_what_to_do(self, workdir, tmp_path, open_page):  # noqa: F811
        open_site, _ = open_page
        site = write_site(str(workdir), str(tmp_path / "demo"))
        page = open_site(site)
        page.goto((site / "index.html").as_uri())
        page.wait_for_function("document.getElementById('status').className === 'error'")
        assert "python -m http.server" in page.inner_text("#status")

    def test_a_cleared_drawing_is_not_predicted(self, workdir, tmp_path, open_page):  # noqa: F811
        open_site, errors = open_page
        page = open_site(write_site(str(workdir), str(tmp_path / "demo")))
        page.evaluate(
            """() => {
              const input = document.getElementById("input"), box = input.getBoundingClientRect();
              const fire = (kind) => input.dispatchEvent(
                new PointerEvent(kind, { pointerId: 1, clientX: box.left + 50, clientY: box.top + 50 }));
              input.setPointerCapture = () => {};
              for (let stroke = 0; stroke < 2; stroke++) { fire("pointerdown"); fire("pointerup"); }
              document.getElementById("clear").click();
            }"""
        )
        page.wait_for_timeout(1000)
        assert page.locator("#classes li").count() == 0
        assert page.inner_text("#status") == "Draw something, or open a picture."
        assert not errors


@pytest.mark.slow
def test_a_folder_is_replaced_only_if_it_is_a_demo(workdir, tmp_path, empty_runtime, capsys):  # noqa: F811
    out = tmp_path / "demo"
    arguments = ["demo", str(workdir), "--static", str(out), "--runtime", empty_runtime]
    assert main(arguments) == 0
    assert sorted(path.name for path in out.iterdir()) == sorted(["demo.js", "index.html", "model.onnx", *FILES])
    assert main(arguments) == 2
    assert "exists; choose another folder, or replace it with --force" in capsys.readouterr().err
    assert main([*arguments, "--force"]) == 0
    (out / "mine.txt").touch()
    assert main([*arguments, "--force"]) == 2
    assert "has other files than a demo" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.html").write_text("of another site")
    assert main(["demo", str(workdir), "--static", str(tmp_path / "mine"), "--runtime", empty_runtime, "--force"]) == 2
    assert (tmp_path / "mine" / "index.html").read_text() == "of another site"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port=70000"], "'70000' is not an integer from 0 to 65535"),
        (["--static", ""], "--static is empty"),
        (["--force"], "--force replaces the folder of --static"),
        (["--static=a", "--port=1"], "--port is for serving"),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments, words, capsys):
    try:
        code = main(["demo", "runs/x", *arguments])
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert words in capsys.readouterr().err


def test_a_page_needs_logits_that_it_can_show_and_one_file():
    with pytest.raises(ExportError, match="cannot show predictions of the task 'spots'; use demo --gradio"):
        _check_page({"task": "spots", "outputs": {"boxes": ["batch", 4]}}, {"model.onnx"})
    about = {"task": "classification", "outputs": {"logits": ["batch", 4]}}
    _check_page(about, {"model.onnx"})
    with pytest.raises(ExportError, match="more than 2 GiB"):
        _check_page(about, {"model.onnx", "model.onnx.data"})


def test_names_of_classes_cannot_add_markup(tmp_path, empty_runtime):
    from tests.train import written_run

    written_run.write(tmp_path / "run", ("</script><b>", *NAMES[1:]))
    site = write_site(str(tmp_path / "run"), str(tmp_path / "demo"), runtime=empty_runtime)
    assert "</script><b>" not in (site / "index.html").read_text()


def test_the_size_of_the_images_can_be_chosen(workdir, tmp_path, empty_runtime):  # noqa: F811
    out = tmp_path / "demo"
    assert main(["demo", str(workdir), "--static", str(out), "--runtime", empty_runtime, "--img-size=32x48"]) == 0
    assert '"shape": ["batch", 1, 32, 48]' in (out / "index.html").read_text()


def test_a_runtime_that_lacks_a_file_is_refused(tmp_path, empty_runtime):
    (tmp_path / "runtime" / FILES[0]).unlink()
    with pytest.raises(ExportError, match=f"lacks {FILES[0]}; expected the folder dist"):
        find_runtime(empty_runtime, print)


def test_a_missing_npm_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(runtime.shutil, "which", lambda name: None)
    with pytest.raises(ExportError, match=r"npm, which downloads .*, is not installed; install Node.js"):
        find_runtime(None, print)


def test_a_port_in_use_is_one_sentence(tmp_path):
    with serve(tmp_path, 0) as server, pytest.raises(ExportError, match=r"cannot be used .*; choose another --port"):
        serve(tmp_path, server.server_port)
