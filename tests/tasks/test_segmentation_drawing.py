"""Colors of classes are distinct, and label maps survive their PNG."""

import io

import numpy as np
import pytest
from PIL import Image

from mambaout_jax.data import DataError
from mambaout_jax.data.label_maps import IGNORED
from mambaout_jax.tasks.pictures import encode_picture
from mambaout_jax.tasks.segmentation.drawing import OPACITY, encode_label_png, make_palette, overlay
from mambaout_jax.tasks.segmentation.predictor import LabelMap
from mambaout_jax.tasks.segmentation.transforms import Decoder


def test_classes_have_distinct_colors():
    names = ["background", *map(str, range(20))]
    palette = make_palette(names)
    assert len({tuple(color) for color in palette[: len(names)].tolist()}) == len(names)
    assert not palette[0].any()
    assert (palette[IGNORED] == 255).all()


def test_ade20k_has_its_usual_colors():
    palette = make_palette(["wall", *(f"class {index}" for index in range(149))])
    assert palette[:3].tolist() == [[120, 120, 120], [180, 120, 120], [6, 230, 230]]
    assert palette[149].tolist() == [92, 0, 255]


def test_a_label_png_has_the_labels_as_pixels():
    labels = np.random.default_rng(0).integers(0, 200, (12, 9), dtype=np.uint8)
    with Image.open(io.BytesIO(encode_label_png(labels, make_palette(["a", "b"])))) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), labels)


def test_an_image_that_is_too_long_for_a_jpeg_is_an_error_of_its_own():
    with pytest.raises(
        DataError, match=r"its overlay is 1x70000 \(height x width\); a JPEG has at most 65500 per side"
    ):
        encode_picture(np.zeros((1, 70_000, 3), np.uint8))


def test_shares_are_named_as_those_of_pixels():
    found = LabelMap(np.array([[0, 0, 0, 1]], np.uint8), ("sky", "sea"), Decoder(3, 2))
    assert found.describe(1) == [" 75.0 % of pixels  sky"]


def test_an_overlay_leaves_black_classes_unchanged():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 1), dtype=np.uint8)
    labels = np.zeros((8, 8), np.uint8)
    labels[2:4] = 1
    shown = overlay(image, labels, make_palette(["background", "thing"]))
    np.testing.assert_array_equal(shown[labels == 0], np.repeat(image, 3, -1)[labels == 0])
    assert (shown[labels == 1] != np.repeat(image, 3, -1)[labels == 1]).any()


def test_an_overlay_has_the_hue_of_the_label_whatever_is_below():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    palette = make_palette(["background", "thing"])
    shown = overlay(image, np.ones((8, 8), np.uint8), palette).astype(int)
    expected = OPACITY * np.diff(palette[1].astype(int))
    np.testing.assert_allclose(np.diff(shown, axis=-1), np.broadcast_to(expected, (8, 8, 2)), atol=1)
