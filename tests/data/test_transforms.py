import dataclasses
import io
import math

import numpy as np
import pytest
from PIL import Image

from mambaout_jax.data import DataError, EvalTransform, TrainTransform
from mambaout_jax.data.transforms import decode_image, random_crop_box
from tests.data.photos import encode, make_photo
from tests.timm import load_timm

BICUBIC, BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR


def gradient(width=40, height=30):
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_becomes_eight_bit_grey_or_rgb(mode, channels):
    image = gradient().convert("L").convert("I").point(lambda v: v * 257) if mode in ("I", "I;16") else gradient()
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16))
    elif mode == "P":
        image = image.quantize(256)
    elif mode != "I":
        image = image.convert(mode)
    assert image.mode == mode
    decoded = decode_image(image, channels)
    assert decoded.mode == {1: "L", 3: "RGB"}[channels]
    if mode != "1":
        reference = np.asarray(gradient().convert("L"), int)
        assert np.abs(np.asarray(decoded.convert("L"), int) - reference).mean() < 8


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_every_format_decodes(form):
    decoded = decode_image(encode(gradient(), form))
    assert np.abs(np.asarray(decoded, int) - np.asarray(gradient(), int)).mean() < 8


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.array([[0, 128, 257 * 7, 257 * 200 + 128, 65535]], np.uint16)
    decoded = decode_image(encode(Image.fromarray(values), "PNG"), 1)
    assert np.asarray(decoded).tolist() == [[0, 0, 7, 200, 255]]


def test_palette_with_transparency_decodes_without_a_warning():
    image = gradient().convert("P")
    image.info["transparency"] = bytes(range(256))
    assert decode_image(encode(image, "PNG")).mode == "RGB"


def test_exif_orientation_is_honoured_only_when_asked():
    image = gradient(40, 30)
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif)
    assert decode_image(file.getvalue()).size == (40, 30)
    assert decode_image(file.getvalue(), exif_orientation=True).size == (30, 40)
    plain, upright = (EvalTransform((8, 8), exif_orientation=asked)(file.getvalue()) for asked in (False, True))
    np.testing.assert_allclose(upright.astype(int), np.rot90(plain, -1), atol=20)


@pytest.mark.parametrize(
    "content",
    [b"", b"no image", encode(gradient())[:400], encode(gradient(), "PNG")[:-60]],
    ids=["empty", "text", "jpeg", "png"],
)
def test_bytes_that_do_not_decode_are_named(content):
    for transform in (EvalTransform((8, 8)), lambda image: TrainTransform((8, 8))(image, np.random.default_rng(0))):
        with pytest.raises(DataError, match="not an image that Pillow decodes"):
            transform(content)


def test_floating_point_pixels_are_refused():
    with pytest.raises(DataError, match="floating-point"):
        decode_image(gradient().convert("F"))


def test_resizing_is_pillows():
    view = TrainTransform((20, 33))(encode(gradient(), "PNG"), np.random.default_rng(0))
    np.testing.assert_array_equal(view, np.asarray(gradient().resize((33, 20), BICUBIC)))


def test_flip_has_its_probability_and_mirrors():
    image, rng = gradient(), np.random.default_rng(0)
    plain, always = (TrainTransform((30, 40), flip=flip)(image, rng) for flip in (0.0, 1.0))
    np.testing.assert_array_equal(always, plain[:, ::-1])
    sometimes = TrainTransform((30, 40), flip=0.3)
    share = np.mean([(sometimes(image, rng) != plain).any() for _ in range(1000)])
    assert share == pytest.approx(0.3, abs=0.06)


def test_random_interpolation_draws_both_filters_equally():
    rng = np.random.default_rng(0)
    image = make_photo(3)
    transform = TrainTransform((20, 20), interpolation="random")
    filters = [np.asarray(image.resize((20, 20), kind)).tobytes() for kind in (BILINEAR, BICUBIC)]
    drawn = [filters.index(transform(image, rng).tobytes()) for _ in range(400)]
    assert np.mean(drawn) == pytest.approx(0.5, abs=0.1)


def test_random_crop_is_cut_out_before_it_is_resized():
    image = make_photo(4)
    view = TrainTransform((24, 24), crop="random_resized")(image, np.random.default_rng(5))
    box = random_crop_box(*image.size, (0.08, 1.0), (3 / 4, 4 / 3), np.random.default_rng(5))
    np.testing.assert_array_equal(view, np.asarray(image.crop(box).resize((24, 24), BICUBIC)))


def test_random_crop_area_is_uniform_and_its_ratio_log_uniform():
    rng = np.random.default_rng(0)
    # A small upper scale lets every draw fit, so that nothing is rejected and the laws show undistorted.
    boxes = np.array([random_crop_box(4000, 4000, (0.1, 0.5), (1 / 2, 2), rng) for _ in range(4000)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area = width * height / 4000**2
    log_ratio = np.log(width / height) / math.log(2)
    for values, low, high in ((area, 0.1, 0.5), (log_ratio, -1, 1)):
        assert low - 1e-3 <= values.min()
        assert values.max() <= high + 1e-3
        quantiles = np.quantile((values - low) / (high - low), [0.25, 0.5, 0.75])
        np.testing.assert_allclose(quantiles, [0.25, 0.5, 0.75], atol=0.03)
    left = boxes[:, 0] / (4000 - width)
    assert left.mean() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (7, 300), (300, 7), (64, 64)])
def test_random_crop_lies_in_the_image(size):
    rng = np.random.default_rng(0)
    for _ in range(200):
        left, top, right, bottom = random_crop_box(*size, (0.08, 1.0), (3 / 4, 4 / 3), rng)
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]


@pytest.mark.parametrize(
    ("size", "box"), [((1000, 30), (480, 0, 520, 30)), ((30, 1000), (0, 480, 30, 520)), ((30, 30), (0, 0, 30, 30))]
)
def test_random_crop_falls_back_to_the_centre(size, box):
    class NeverFits:
        def uniform(self, low, high):
            return 0.0 if low < 0 else 1e9

    assert random_crop_box(*size, (0.08, 1.0), (3 / 4, 4 / 3), NeverFits()) == box


@pytest.mark.parametrize("crop_pct", [1.0, 0.93, 0.875])
@pytest.mark.parametrize("image_size", [(500, 375), (375, 500), (64, 64), (31, 200)])
def test_centre_crop_scales_the_shorter_side_to_floor_of_size_over_crop_pct(crop_pct, image_size):
    image = make_photo(2).resize(image_size)
    side, (width, height) = math.floor(64 / crop_pct), image_size
    if width <= height:
        resized = image.resize((side, int(side * height / width)), BICUBIC)
    else:
        resized = image.resize((int(side * width / height), side), BICUBIC)
    left, top = round((resized.width - 64) / 2), round((resized.height - 64) / 2)
    expected = np.asarray(resized)[top : top + 64, left : left + 64]
    np.testing.assert_array_equal(EvalTransform((64, 64), crop_pct=crop_pct)(image), expected)


@pytest.mark.torch
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(32, 32), (48, 32), (33, 57)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.9])
def test_evaluation_sees_the_pixels_that_timm_sees(crop_mode, size, crop_pct):
    load_timm()
    from timm.data import create_transform

    ours = EvalTransform(size, crop_mode=crop_mode, crop_pct=crop_pct)
    theirs = create_transform(
        (3, *size), is_training=False, interpolation="bicubic", crop_pct=crop_pct, crop_mode=crop_mode, normalize=False
    )
    for number in (0, 1, 2, 3, 4, 5):
        image = make_photo(number)
        expected = theirs(image.convert("RGB")).numpy().transpose(1, 2, 0)
        np.testing.assert_array_equal(ours(image), expected)


def test_grey_output_has_one_channel():
    assert EvalTransform((8, 9), channels=1)(gradient()).shape == (8, 9, 1)
    assert TrainTransform((8, 9), channels=1)(gradient(), np.random.default_rng(0)).shape == (8, 9, 1)
    assert EvalTransform((8, 9), channels=1, crop_mode="border")(gradient()).shape == (8, 9, 1)


def test_an_image_that_would_not_fit_into_memory_is_refused():
    with pytest.raises(DataError, match="60000x1 image"):
        EvalTransform((224, 224))(Image.new("L", (60000, 1)))
    assert EvalTransform((16, 16), crop_mode="squash")(Image.new("L", (6000, 1))).shape == (16, 16, 3)


@pytest.mark.parametrize(
    ("transform", "options", "words"),
    [
        (TrainTransform, {"size": (0, 8)}, "size is"),
        (TrainTransform, {"size": (8, 8, 3)}, "size is"),
        (TrainTransform, {"channels": 4}, "channels is 4"),
        (TrainTransform, {"crop": "centre"}, "crop is 'centre'; expected one of resize, random_resized"),
        (TrainTransform, {"scale": (0.0, 1.0)}, "scale is"),
        (TrainTransform, {"scale": (0.5, 1.5)}, "scale is"),
        (TrainTransform, {"ratio": (2.0, 1.0)}, "ratio is"),
        (TrainTransform, {"flip": 2.0}, "flip is 2.0"),
        (TrainTransform, {"interpolation": "nearest"}, "expected one of bilinear, bicubic, random"),
        (EvalTransform, {"size": (8.0, 8)}, "size is"),
        (EvalTransform, {"crop_pct": 0.0}, "crop_pct is"),
        (EvalTransform, {"crop_pct": 1.1}, "crop_pct is"),
        (EvalTransform, {"crop_mode": "corner"}, "crop_mode is 'corner'"),
        (EvalTransform, {"interpolation": "random"}, "interpolation is 'random'"),
    ],
)
def test_options_outside_their_range_are_named(transform, options, words):
    with pytest.raises(DataError, match=words):
        transform(**{"size": (8, 8)} | options)


def test_transforms_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        EvalTransform((8, 8)).size = (9, 9)
