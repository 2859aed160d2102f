import dataclasses
import io
import math

import numpy as np
import pytest
from PIL import Image

from mambaout_jax.data import DataError, EvalTransform
from tests.data.photos import encode, make_photo
from tests.data.pictures import gradient
from tests.timm import load_timm

BICUBIC = Image.Resampling.BICUBIC


@pytest.mark.parametrize(
    "content",
    [b"", b"no image", encode(gradient())[:400], encode(gradient(), "PNG")[:-60]],
    ids=["empty", "text", "jpeg", "png"],
)
def test_undecodable_bytes_are_named(content):
    with pytest.raises(DataError, match="Pillow cannot decode the image"):
        EvalTransform((8, 8))(content)


def test_photographs_are_rotated_upright_only_on_request():
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    gradient(40, 30).save(file, "JPEG", exif=exif)
    plain, upright = (EvalTransform((8, 8), exif_orientation=asked)(file.getvalue()) for asked in (False, True))
    np.testing.assert_allclose(upright.astype(int), np.rot90(plain, -1), atol=20)


@pytest.mark.parametrize("crop_pct", [1.0, 0.93, 0.875])
@pytest.mark.parametrize("image_size", [(500, 375), (375, 500), (64, 64), (31, 200)])
def test_center_crop_scales_the_shorter_side_to_floor_of_size_over_crop_pct(crop_pct, image_size):
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
def test_evaluation_pixels_equal_timms(crop_mode, size, crop_pct):
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


def test_a_very_elongated_image_takes_little_memory():
    assert EvalTransform((224, 224))(Image.new("L", (60000, 1))).shape == (224, 224, 3)
    assert EvalTransform((16, 16), crop_mode="squash")(Image.new("L", (6000, 1))).shape == (16, 16, 3)


def test_gray_output_has_one_channel():
    assert EvalTransform((8, 9), channels=1)(gradient()).shape == (8, 9, 1)
    assert EvalTransform((8, 9), channels=1, crop_mode="border")(gradient()).shape == (8, 9, 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": (8.0, 8)}, "size is"),
        ({"crop_pct": 0.0}, "crop_pct is"),
        ({"crop_pct": 1.1}, "crop_pct is"),
        ({"crop_mode": "corner"}, "crop_mode is 'corner'"),
        ({"interpolation": "random"}, "interpolation is 'random'"),
    ],
)
def test_options_out_of_range_are_named(options, words):
    with pytest.raises(DataError, match=words):
        EvalTransform(**{"size": (8, 8)} | options)


def test_transform_is_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        EvalTransform((8, 8)).size = (9, 9)
