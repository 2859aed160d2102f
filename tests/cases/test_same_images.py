"""Preparation, training, evaluation and prediction accept the same images and see the same pixels."""

import io
import runpy
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mambaout_jax.data import DataError, EvalTransform, TrainTransform, decode
from mambaout_jax.data.eval_transform import CROP_MODES
from mambaout_jax.data.imagenet_classes import imagenet_class_names
from mambaout_jax.data.prepare import prepare_folder
from mambaout_jax.models import InputSpec
from mambaout_jax.tasks.classification.source import open_source
from tests.data import photos
from tests.train import tiny

TASK = tiny.config().build_task()
SIZES = [(1, 1), (2, 602), (602, 2), (1, 5000), (40000, 1), (3, 3), (300, 200)]
READERS = {
    **{
        f"training, {crop}, {pipeline}": lambda image, crop=crop, pipeline=pipeline: TrainTransform(
            (24, 24), crop=crop, pipeline=pipeline
        )(image, np.random.default_rng(0))
        for crop in ("resize", "random_resized")
        for pipeline in ("exact", "fast")
    },
    **{f"evaluation, {mode}": EvalTransform((24, 24), crop_mode=mode) for mode in CROP_MODES},
    "evaluation, upright": EvalTransform((24, 24), exif_orientation=True),
}


class FirstPixels:
    """A model whose logits are the pixels at the corners."""

    in_chans = 3
    input_spec = InputSpec((0.5,) * 3, (0.25,) * 3, (24, 24), 1.0, "center", "bicubic")

    def apply(self, variables, images):
        return jnp.stack([images[:, 0, 0, 0], images[:, -1, 0, 1], images[:, 0, -1, 2]], axis=-1)


def noise(size, mode="RGB"):
    width, height = size
    rng = np.random.default_rng(width)
    if mode == "F":
        return Image.fromarray(rng.random((height, width), np.float32))
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).convert(mode)


def encode(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def with_exif(orientation, size=(120, 80)):
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth = noise((6, 4)).resize(size, Image.Resampling.BICUBIC)
    return encode(smooth, "JPEG", exif=exif, quality=95)


def with_damaged_exif():
    image = with_exif(6)
    start = image.index(b"Exif\0\0") + 6
    return image[:start] + b"XX\0*" + b"\xff" * 8 + image[start + 12 :]


def prepare(folder, image, name):
    """Prepare two classes of which one image is `image`."""
    for number, content in enumerate([image, encode(noise((30, 30)))]):
        path = folder / "pets" / ("cat", "dog")[number] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    prepare_folder(str(folder / "pets"), data_dir=str(folder / "out"))
    return open_source("pets", "train", str(folder / "out"))


FILES = {
    **{f"PNG of {size[0]}x{size[1]}": encode(noise(size)) for size in SIZES},
    **{f"JPEG of {size[0]}x{size[1]}": encode(noise(size), "JPEG") for size in SIZES},
    **{f"PNG of mode {mode}": encode(noise((40, 30), mode)) for mode in ("1", "L", "LA", "P", "RGBA")},
    "TIFF of 16 bits": encode(Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40)), "TIFF"),
    "TIFF of floating-point pixels": encode(noise((40, 30), "F"), "TIFF"),
    "JPEG in CMYK": encode(noise((40, 30), "CMYK"), "JPEG"),
    "truncated JPEG": encode(noise((40, 30)), "JPEG")[:-300],
    "text": b"not an image",
    "damaged EXIF": with_damaged_exif(),
    "GIF": encode(noise((40, 30)), "GIF"),
}


@pytest.mark.parametrize("file", FILES)
def test_what_prepare_accepts_every_reader_takes_and_what_it_refuses_none(tmp_path, file):
    image = FILES[file]
    try:
        prepare(tmp_path, image, "a.bin")
        accepted = True
    except DataError:
        accepted = False
    for name, reader in READERS.items():
        if accepted:
            assert reader(image).shape == (24, 24, 3), name
        else:
            with pytest.raises(DataError):
                reader(image)


def test_the_center_of_an_elongated_image_is_that_of_its_middle():
    image = noise((9000, 20))
    middle = image.crop((2500, 0, 6500, 20))
    for mode in ("RGB", "L"):
        np.testing.assert_array_equal(
            EvalTransform((24, 24), crop_pct=0.9)(image.convert(mode)),
            EvalTransform((24, 24), crop_pct=0.9)(middle.convert(mode)),
        )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("channels", [1, 3])
def test_both_pipelines_turn_images_upright_before_they_crop(orientation, channels):
    image = with_exif(orientation, size=(480, 320))
    upright = encode(decode.decode_image(image, exif_orientation=True), "PNG")
    for seed in range(8):
        views = [
            TrainTransform(
                (32, 48), channels, crop="random_resized", flip=0.5, pipeline=pipeline, exif_orientation=turned
            )(file, np.random.default_rng(seed)).astype(int)
            for pipeline, file, turned in (("exact", upright, False), ("exact", image, True), ("fast", image, True))
        ]
        np.testing.assert_array_equal(views[0], views[1])
        assert np.abs(views[1] - views[2]).mean() < 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_own_folders_are_upright_in_evaluation_and_prediction(tmp_path, orientation):
    image = with_exif(orientation)
    source = prepare(tmp_path, image, "a.jpg")
    model = FirstPixels()
    transform = TASK.eval_transform(model, source)
    [index] = [index for index in range(2) if source[index]["image"] == image]
    seen = transform(source[index])["image"]
    np.testing.assert_array_equal(seen, TASK.predictor(model, source.labels).prepare(image)["image"])
    plain = EvalTransform((24, 24), exif_orientation=False)(decode.decode_image(image, exif_orientation=True))
    np.testing.assert_array_equal(seen, plain)
    assert TASK.train_transform(model, source).image_transform.exif_orientation


def test_other_datasets_and_imagenet_ignore_the_orientation_in_evaluation_and_prediction(tmp_path):
    photos.write(photos.Photos, tmp_path, config="whole")
    source = open_source("photos/whole", "train", str(tmp_path))
    model, image = FirstPixels(), with_exif(6)
    seen = TASK.eval_transform(model, source)({"image": image, "label": 0})["image"]
    for labels in (source.labels, {"class_names": list(imagenet_class_names())}):
        np.testing.assert_array_equal(seen, TASK.predictor(model, labels).prepare(image)["image"])
    assert not TASK.train_transform(model, source).image_transform.exif_orientation
    turned = TASK.predictor(model, {"class_names": ["a", "b"]}).prepare(image)["image"]
    assert (turned != seen).any()


def test_damaged_exif_data_leaves_an_image_as_it_is():
    image = with_damaged_exif()
    np.testing.assert_array_equal(
        *(np.asarray(decode.decode_image(image, exif_orientation=upright)) for upright in (False, True))
    )


def test_the_message_for_an_unknown_format_names_no_object():
    with pytest.raises(DataError, match=r"^Pillow cannot decode the image \(its format is unknown\)$"):
        decode.decode_image(b"text")


def test_heic_names_the_package_that_reads_it():
    with pytest.raises(DataError, match="HEIC images require pillow-heif; run: pip install pillow-heif"):
        decode.decode_image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")


def test_heic_is_registered_if_its_package_is_installed(monkeypatch):
    called = []
    package = types.ModuleType("pillow_heif")
    package.register_heif_opener = lambda: called.append(True)
    monkeypatch.setitem(sys.modules, "pillow_heif", package)
    runpy.run_path(decode.__file__)
    assert called == [True]
