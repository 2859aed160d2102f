"""Images in Python are seen and classified as by the commands `predict` and `evaluate`."""

import io
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import mambaout_jax as mo
from mambaout_jax.__main__ import main
from mambaout_jax.data import DataError, EvalTransform
from mambaout_jax.models import InputSpec
from mambaout_jax.run.errors import RunError
from mambaout_jax.tasks.classification import inference
from mambaout_jax.tasks.errors import TaskError
from tests.train import written_run

NAMES = ("carp", "n01440764", "pike")
TURNED = 6  # the EXIF orientation of a photograph that is shown after a quarter turn


class Brightness:
    """Classify by the brightness of the upper and of the lower half."""

    name, in_chans, num_classes = "brightness", 3, 2
    input_spec = InputSpec((0.5,) * 3, (0.25,) * 3, (32, 48), 0.875, "center", "bicubic")

    def __init__(self):
        self.shapes = []

    def has_method(self, name):
        return name == "embed"

    def apply(self, variables, images):
        self.shapes.append(images.shape)
        return variables * jnp.stack([images[:, :16].mean((1, 2, 3)), images[:, 16:].mean((1, 2, 3))], 1)


def test_a_model_of_another_task_is_refused_with_what_to_call():
    with pytest.raises(TaskError, match=r"upernet_mambaout_femto does not classify images; call .*predict_files"):
        mo.predict(mo.create_model("upernet_mambaout_femto"), {}, photograph())


def photograph(size=(60, 40), seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8))


def encode(image, kind="PNG", orientation=1):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, kind, exif=exif)
    return file.getvalue()


def transform(model, **options):
    spec = model.input_spec
    return EvalTransform(spec.size, model.in_chans, spec.crop_pct, spec.crop_mode, spec.interpolation, **options)


def normalized(model, *pixels):
    """Return what an evaluation computes of its pixels, in one program."""
    return jax.jit(model.input_spec.normalize)(np.stack(pixels))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("inference") / "run"
    changes = {"model.in_chans": 3, "model.img_size": (32, 48), "data.crop_pct": 0.7, "data.crop_mode": "squash"}
    written_run.write(workdir, NAMES, **changes)
    return workdir


@pytest.fixture(scope="module")
def run(workdir):
    return mo.load_run(str(workdir))


@pytest.fixture
def files(tmp_path):
    for index in range(3):
        data = encode(photograph(seed=index), "JPEG", orientation=(1, TURNED, 3)[index])
        (tmp_path / f"{index}.jpg").write_bytes(data)
    return sorted(tmp_path.iterdir())


@pytest.mark.slow
def test_a_run_has_model_variables_class_names_and_task(run):
    assert (run.class_names, run.task.name, run.step, run.weights) == (NAMES, "classification", written_run.STEP, "ema")
    assert run.model.apply(run.variables, jnp.zeros((1, 32, 48, 3))).shape == (1, 3)
    assert len(repr(run)) < 100
    assert re.search("mambaout.*classification.*ema", repr(run))


@pytest.mark.parametrize("weights", ["best", ""])
def test_unknown_weights_are_refused(workdir, weights):
    with pytest.raises(RunError, match="expected 'ema', 'raw' or None"):
        mo.load_run(workdir, weights=weights)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="is not the workdir of a run"):
        mo.load_run(tmp_path / "missing")


@pytest.mark.slow
def test_predictions_for_a_run_equal_those_of_the_command(run, workdir, files, capsys):
    assert main(["predict", "--json", "--top=2", str(workdir), *map(str, files)]) == 0
    expected = [answer["predictions"] for answer in json.loads(capsys.readouterr().out)]
    found = mo.predict(run.model, run.variables, files, top=2, class_names=run.class_names)
    assert [prediction.to_json() for prediction in found] == expected
    assert any(guess.get("description") == "tench, Tinca tinca" for guess in expected[0] + found[0].to_json(3))
    assert "tench" in repr(found[0]._replace(top=3))


@pytest.mark.slow
def test_batches_are_what_an_evaluation_sees(run, files):
    source = type("Source", (), {"exif_orientation": True, "max_labels": 1})
    evaluated = run.task.eval_transform(run.model, source)
    pixels = [evaluated({"image": file.read_bytes(), "label": 0})["image"] for file in files]
    batch = mo.preprocess(files, run.model)
    assert batch.dtype == jnp.float32
    np.testing.assert_array_equal(batch, normalized(run.model, *pixels))
    probabilities = jax.nn.softmax(run.model.apply(run.variables, batch))
    for row, found in zip(probabilities, mo.predict(run.model, run.variables, files), strict=True):
        np.testing.assert_allclose(found.probabilities, row, rtol=1e-4, atol=1e-6)


def test_batches_of_one_shape_are_normalized_by_one_program():
    data = encode(photograph(), "JPEG")
    first = mo.preprocess(data, Brightness())
    with jax.no_tracing(True):  # which makes tracing an error
        np.testing.assert_array_equal(mo.preprocess(data, Brightness()), first)


@pytest.mark.parametrize("exif_orientation", [None, True, False])
def test_photographs_are_turned_upright_unless_that_is_refused(exif_orientation):
    model, data = Brightness(), encode(photograph(), "JPEG", TURNED)
    batch = mo.preprocess(data, model, exif_orientation=exif_orientation)
    expected = transform(model, exif_orientation=exif_orientation is not False)(data)
    np.testing.assert_array_equal(batch, normalized(model, expected))


def test_models_of_imagenet_ignore_the_orientation_and_have_its_classes():
    model, data = Brightness(), encode(photograph(), "JPEG", TURNED)
    model.num_classes = 1000
    np.testing.assert_array_equal(mo.preprocess(data, model), normalized(model, transform(model)(data)))
    model.apply = lambda variables, images: jnp.tile(jnp.arange(1000.0)[::-1], (len(images), 1))
    [found] = mo.predict(model, {}, data, top=1)
    assert found.describe() == [" 63.2 %  tench"]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_paths_bytes_pictures_and_pixels_are_the_same_images(tmp_path, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 60, channels), np.uint8)
    pictures = [Image.fromarray(image[..., 0] if channels == 1 else image) for image in pixels]
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for path, picture in zip(paths, pictures, strict=True):
        picture.save(path)
    model = Brightness()
    batch = np.asarray(mo.preprocess(pixels, model))
    np.testing.assert_array_equal(batch, normalized(model, *(transform(model)(path.read_bytes()) for path in paths)))
    for images in (
        paths,
        [str(path) for path in paths],
        tuple(path.read_bytes() for path in paths),
        pictures,
        list(pixels),
        jnp.asarray(pixels),
        [paths[0], pictures[1], pixels[2]],
    ):
        np.testing.assert_array_equal(mo.preprocess(images, model), batch)
    for image in (paths[1], str(paths[1]), paths[1].read_bytes(), pictures[1], pixels[1], jnp.asarray(pixels[1])):
        np.testing.assert_array_equal(mo.preprocess(image, model), batch[1:2])


def test_gray_models_see_gray_images():
    model = mo.create_model("mambaout_femto", in_chans=1, img_size=32)
    gray = np.random.default_rng(0).integers(0, 256, (40, 60), np.uint8)
    expected = normalized(model, transform(model)(Image.fromarray(gray)))
    for image in (gray, gray[..., None], encode(Image.fromarray(gray)), gray[None, ..., None]):
        np.testing.assert_array_equal(mo.preprocess(image, model), expected)


@pytest.mark.parametrize("count", [1, 5, 9])
def test_any_number_of_images_is_one_compile_for_all_calls(monkeypatch, count):
    monkeypatch.setattr(inference, "MAX_PREDICTED", 4)
    model, images = Brightness(), np.zeros((count, 40, 60, 3), np.uint8)
    images[::2, :20] = images[1::2, 20:] = 255
    expected = ["01"[index % 2] for index in range(count)]
    for scale in (1.0, 2.0):
        found = mo.predict(model, jnp.float32(scale), images)
        assert [prediction.to_json(1)[0]["class"] for prediction in found] == expected
    assert model.shapes == [(min(count, 4), 32, 48, 3)]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("missing.jpg", r"^missing\.jpg: No such file"),
        (b"text", "^the image: Pillow cannot decode"),
        ([photograph(), b"text"], r"^images\[1\]: Pillow cannot decode"),
        (["missing.jpg"], r"^missing\.jpg: No such file"),
        ([], "^there are no images"),
        (np.zeros((0, 40, 60, 3), np.uint8), "^there are no images"),
        (np.zeros((40, 60, 3), np.float32), r"float32 with shape \(40, 60, 3\) is not an image; expected uint8"),
        (np.zeros((3, 40, 60), np.uint8), r"shape \(3, 40, 60\) is not an image"),
        (np.zeros((0, 60, 3), np.uint8), "is not an image"),
        (np.zeros((1, 1, 40, 60, 3), np.uint8), "is not an image"),
        ([[photograph()]], r"^images\[0\]: "),
        (None, "is not an image"),
    ],
    ids=range(12),
)
def test_what_is_no_image_is_named(no_type_checks, monkeypatch, tmp_path, image, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        mo.preprocess(image, Brightness())
    with pytest.raises(DataError, match=message):
        mo.predict(Brightness(), {}, image)


def test_names_of_another_model_and_diverged_weights_are_refused():
    with pytest.raises(TaskError, match="class_names has 3 names; expected 2, one per output"):
        mo.predict(Brightness(), {}, photograph(), class_names=NAMES)
    with pytest.raises(TaskError, match=r"images\[0\]: the probabilities are not finite"):
        mo.predict(Brightness(), jnp.float32(jnp.nan), [photograph()])
