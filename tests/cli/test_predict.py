"""`predict` classifies images of all formats, and names files that it cannot read."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import mambaout_jax as mo
from mambaout_jax.__main__ import main
from mambaout_jax.models import InputSpec
from mambaout_jax.run import workdir as workdirs
from tests.train import tiny

CONFIG = tiny.config()
TASK = CONFIG.build_task()
RED, GREEN, BLUE = (250, 5, 5), (5, 250, 5), (5, 5, 250)


class TopColour:
    """Classify by the mean color of the upper half: red, green, blue."""

    in_chans = 3
    input_spec = InputSpec((0.5,) * 3, (0.25,) * 3, (32, 48), 0.875, "center", "bicubic")

    def __init__(self):
        self.shapes = []

    def apply(self, variables, images):
        self.shapes.append(images.shape)
        return variables["scale"] * images[:, :16].mean((1, 2))


@pytest.fixture
def model(monkeypatch):
    model = TopColour()
    labels = {"class_names": ["red", "green", "blue"]}
    run = workdirs.Run(CONFIG, TASK, model, {"scale": jnp.float32(1)}, labels, 7, "raw")
    monkeypatch.setattr(workdirs, "restore_run", lambda workdir, weights=None: run)
    return model


def halves(top, bottom, size=(60, 40)):
    image = Image.new("RGB", size, bottom)
    image.paste(top, (0, 0, size[0], size[1] // 2))
    return image


def classify(capsys, *files, code=0):
    assert main(["predict", "runs/x", "--json", *map(str, files)]) == code
    return json.loads(capsys.readouterr().out)


def first(answer):
    return answer["predictions"][0]["class"]


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("a.jpg", "RGB", {"quality": 95}),
        ("a.jpg", "CMYK", {"quality": 95}),
        ("a.png", "RGB", {}),
        ("a.png", "RGBA", {}),
        ("a.png", "P", {}),
        ("a.webp", "RGB", {}),
        ("a.webp", "RGBA", {"lossless": True}),
        ("a.gif", "P", {}),
        ("a.bmp", "RGB", {}),
        ("a.tif", "CMYK", {}),
        ("no_suffix", "RGB", {"format": "PNG"}),
    ],
)
def test_formats_and_modes_keep_their_colors(model, tmp_path, capsys, name, mode, options):
    for index, (colour, word) in enumerate([(RED, "red"), (GREEN, "green"), (BLUE, "blue")]):
        halves(colour, (0, 0, 0)).convert(mode).save(tmp_path / f"{index}{name}", **options)
        (answer,) = classify(capsys, tmp_path / f"{index}{name}")
        assert first(answer) == word


@pytest.mark.parametrize("mode", ["L", "LA", "1", "I;16", "I"])
def test_gray_of_any_bit_depth_stays_gray(model, tmp_path, capsys, mode):
    grey = np.linspace(0, 255, 60 * 40).reshape(40, 60).astype(np.uint8)
    image = Image.fromarray(grey)
    if mode in ("I;16", "I"):
        image = Image.fromarray(grey.astype(np.uint16) * 257).convert(mode)
    else:
        image = image.convert(mode)
    image.save(tmp_path / "grey.tif")
    (answer,) = classify(capsys, tmp_path / "grey.tif")
    assert [guess["probability"] for guess in answer["predictions"]] == pytest.approx([1 / 3] * 3, abs=1e-3)


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (300, 40), (40, 300), (1200, 900)])
def test_images_of_any_size_are_classified(model, tmp_path, capsys, size):
    Image.new("RGB", size, GREEN).save(tmp_path / "a.png")
    assert first(classify(capsys, tmp_path / "a.png")[0]) == "green"


@pytest.mark.parametrize(("orientation", "word"), [(1, "red"), (3, "blue"), (4, "blue"), (2, "red")])
def test_photograph_is_rotated_by_its_exif_orientation(model, tmp_path, capsys, orientation, word):
    exif = Image.Exif()
    exif[0x0112] = orientation
    halves(RED, BLUE).save(tmp_path / "a.jpg", exif=exif)
    assert first(classify(capsys, tmp_path / "a.jpg")[0]) == word


def test_first_frame_of_an_animation_counts(model, tmp_path, capsys):
    frames = [Image.new("RGB", (40, 40), colour) for colour in (GREEN, RED, RED)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert first(classify(capsys, tmp_path / "a.gif")[0]) == "green"


def test_invalid_files_are_named_and_the_others_classified(model, tmp_path, capsys):
    halves(RED, RED).save(tmp_path / "good.png")
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "torn.png").write_bytes((tmp_path / "good.png").read_bytes()[:60])
    (tmp_path / "empty.png").touch()
    names = ["text.jpg", "good.png", "missing.png", "torn.png", "empty.png", "good.png"]
    assert main(["predict", "runs/x", *(str(tmp_path / name) for name in names)]) == 2
    captured = capsys.readouterr()
    assert captured.out.count(f"{tmp_path / 'good.png'}\n  ") == 2
    errors = captured.err.splitlines()
    assert len(errors) == 4
    for name, error in zip([name for name in names if name != "good.png"], errors, strict=True):
        assert error.startswith(f"error: {tmp_path / name}: ")
    assert "no such file" in errors[1].lower()


def test_json_has_an_entry_for_each_file_in_order(model, tmp_path, capsys):
    halves(RED, RED).save(tmp_path / "good.png")
    bad, good = classify(capsys, tmp_path / "missing.png", tmp_path / "good.png", code=2)
    assert bad["file"].endswith("missing.png")
    assert "predictions" not in bad
    assert good["file"].endswith("good.png")
    assert (good["predictions"][0]["class"], good["predictions"][0]["index"]) == ("red", 0)


def test_no_file_at_all_that_can_be_read_is_exit_code_two(model, tmp_path, capsys):
    assert main(["predict", "runs/x", str(tmp_path / "missing.png")]) == 2
    assert not model.shapes


@pytest.mark.parametrize(("top", "expected"), [(None, 3), ("2", 2), ("9", 3)])
def test_top_classes_fall_in_probability(model, tmp_path, capsys, top, expected):
    halves(GREEN, GREEN).save(tmp_path / "a.png")
    (answer,) = classify(capsys, tmp_path / "a.png", *(["--top", top] if top else []))
    probabilities = [guess["probability"] for guess in answer["predictions"]]
    assert len(probabilities) == expected
    assert probabilities == sorted(probabilities, reverse=True)
    if expected == 3:
        assert sum(probabilities) == pytest.approx(1)


@pytest.mark.parametrize("top", ["0", "-1", "x", "2.5"])
def test_invalid_top_is_refused(model, capsys, top):
    with pytest.raises(SystemExit, match="2"):
        main(["predict", "runs/x", "a.png", f"--top={top}"])
    assert "is not an integer of at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "expected"), [([], None), (["--weights=raw"], "raw"), (["--weights=ema"], "ema")])
def test_weights_are_those_asked_for(model, monkeypatch, tmp_path, words, expected):
    asked = []
    run = workdirs.load_run("runs/x")
    monkeypatch.setattr(workdirs, "restore_run", lambda workdir, weights=None: asked.append((workdir, weights)) or run)
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    assert main(["predict", "runs/x", str(tmp_path / "a.png"), *words]) == 0
    assert asked == [("runs/x", expected)]


def test_diverged_weights_are_an_error(model, monkeypatch, tmp_path, capsys):
    run = workdirs.load_run("runs/x")._replace(variables={"scale": jnp.float32(jnp.nan)})
    monkeypatch.setattr(workdirs, "restore_run", lambda workdir, weights=None: run)
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    assert main(["predict", "runs/x", str(tmp_path / "a.png")]) == 2
    captured = capsys.readouterr()
    assert "not finite" in captured.err
    assert not captured.out


@pytest.mark.slow
def test_real_model_of_one_channel_is_given_what_its_spec_says(monkeypatch, tmp_path, capsys):
    model = mo.create_model(
        "mambaout_femto", img_size=32, in_chans=1, num_classes=10, depths=(1, 1, 1, 1), dims=(8, 8, 8, 8)
    )
    variables = model.init(jax.random.key(0))
    labels = {"class_names": [f"digit {label}" for label in range(10)]}
    run = workdirs.Run(CONFIG, TASK, model, variables, labels, 1, "raw")
    monkeypatch.setattr(workdirs, "restore_run", lambda workdir, weights=None: run)
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (answer,) = classify(capsys, tmp_path / "a.png")
    logits = model.apply(variables, jnp.float32((pixels[None, :, :, None] / 255 - 0.5) / 0.5))
    expected = np.sort(np.asarray(jax.nn.softmax(logits)[0]))[::-1][:5]
    assert [guess["probability"] for guess in answer["predictions"]] == pytest.approx(expected.tolist(), rel=1e-4)
