import dataclasses
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from mambaout_jax.data import DataError
from mambaout_jax.data.randaugment import (
    FILL,
    INCREASING,
    MATRICES,
    OPERATIONS,
    PLAIN,
    VALUES,
    Operation,
    RandAugment,
    affine_opencv,
    affine_pillow,
    apply,
)
from tests.data.pictures import textured
from tests.golden.randaugment import timm_operation
from tests.timm import load_timm

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "randaugment.npz")
RECIPE = "rand-m9-mstd0.5-inc1"
SETS = {RECIPE: INCREASING, "rand-m9-mstd0.5": PLAIN}


def noise(height, width, channels=3, low=0, high=256):
    return np.random.default_rng((height, width)).integers(low, high, (height, width, channels)).astype(np.uint8)


IMAGES = {
    "picture": np.asarray(textured(61, 47)),
    "noise": noise(33, 35),
    "narrow-range": noise(24, 20, low=90, high=140),
    "one-colour": np.full((9, 9, 3), 77, np.uint8),
    "1x1": noise(1, 1),
    "2x5": noise(2, 5),
}


@pytest.mark.torch
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_every_operation_at_every_level_equals_timm(name, image):
    for half_level in range(-20, 21):
        for interpolation in ("bilinear", "bicubic"):
            level = half_level / 2
            expected = timm_operation(name, image, level, interpolation)
            found = apply(image, Operation(name, level, interpolation), affine_pillow)
            np.testing.assert_array_equal(found, expected, err_msg=f"level {level}, {interpolation}")


@pytest.mark.torch
@pytest.mark.parametrize(("text", "operations"), SETS.items())
def test_operations_and_fill_are_timms(text, operations):
    load_timm()
    from timm.data import create_transform

    theirs = create_transform((3, 224, 224), is_training=True, auto_augment=text, interpolation="random").transforms[2]
    assert sorted(operations) == sorted(op.name for op in theirs.ops)
    ours = RandAugment.parse(text)
    assert theirs.num_layers == ours.num_ops
    for op in theirs.ops:
        assert (op.prob, op.magnitude, op.magnitude_std) == (ours.prob, ours.magnitude, ours.magnitude_std)
        assert tuple(op.kwargs["fillcolor"]) == FILL[3]
        assert op.kwargs["resample"] == (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_equals_recorded_timm_pixels(name):
    keys = [key for key in GOLDEN.files if key.startswith(f"{name}/")]
    assert len(keys) == 3
    for key in keys:
        _, level, interpolation = key.split("/")
        operation = Operation(name, float(level), interpolation)
        found = np.stack([apply(image, operation, affine_pillow) for image in GOLDEN["images"]])
        np.testing.assert_array_equal(found, GOLDEN[key], err_msg=key)


def share(level, whole):
    return int(abs(level) / 10 * whole)


def factor(level):
    return abs(level) / 10 * 1.8 + 0.1


def increasing(level):
    return max(0.1, 1 + level / 10 * 0.9)


def posterize(image, bits):
    return ImageOps.posterize(image, bits) if bits else image.point(lambda _: 0)


PILLOW = {
    "AutoContrast": lambda image, level: ImageOps.autocontrast(image),
    "Equalize": lambda image, level: ImageOps.equalize(image),
    "Invert": lambda image, level: ImageOps.invert(image),
    "Posterize": lambda image, level: posterize(image, share(level, 4)),
    "PosterizeIncreasing": lambda image, level: posterize(image, 4 - share(level, 4)),
    "Solarize": lambda image, level: ImageOps.solarize(image, share(level, 256)),
    "SolarizeIncreasing": lambda image, level: ImageOps.solarize(image, 256 - share(level, 256)),
    "SolarizeAdd": lambda image, level: image.point(
        [min(255, v + share(level, 110)) if v < 128 else v for v in range(256)] * len(image.getbands())
    ),
    "Color": lambda image, level: ImageEnhance.Color(image).enhance(factor(level)),
    "ColorIncreasing": lambda image, level: ImageEnhance.Color(image).enhance(increasing(level)),
    "Contrast": lambda image, level: ImageEnhance.Contrast(image).enhance(factor(level)),
    "ContrastIncreasing": lambda image, level: ImageEnhance.Contrast(image).enhance(increasing(level)),
    "Brightness": lambda image, level: ImageEnhance.Brightness(image).enhance(factor(level)),
    "BrightnessIncreasing": lambda image, level: ImageEnhance.Brightness(image).enhance(increasing(level)),
    "Sharpness": lambda image, level: ImageEnhance.Sharpness(image).enhance(factor(level)),
    "SharpnessIncreasing": lambda image, level: ImageEnhance.Sharpness(image).enhance(increasing(level)),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", VALUES)
def test_color_operations_equal_pillow_at_any_level_and_size(name, channels):
    rng = np.random.default_rng(0)
    for _ in range(60):
        height, width = rng.integers(1, 70, 2)
        low = int(rng.integers(0, 200))
        image = rng.integers(low, rng.integers(low + 1, 257), (height, width, channels)).astype(np.uint8)
        level = rng.uniform(-9.99, 9.99)
        picture = Image.fromarray(image if channels == 3 else image[..., 0])
        expected = np.asarray(PILLOW[name](picture, level)).reshape(image.shape)
        np.testing.assert_array_equal(apply(image, Operation(name, level), affine_pillow), expected)


@pytest.mark.parametrize(("name", "level"), [("Posterize", 0.0), ("PosterizeIncreasing", 10.0)])
def test_posterizing_to_no_bits_gives_black(name, level):
    assert not apply(IMAGES["picture"], Operation(name, level), affine_pillow).any()


def change(name, level):
    """Return how much an operation changes the pixels of an image on average, in either direction."""
    image = IMAGES["picture"].astype(int)
    found = (apply(IMAGES["picture"], Operation(name, sign * level), affine_pillow) for sign in (-1, 1))
    return np.mean([np.abs(pixels - image).mean() for pixels in found])


@pytest.mark.parametrize("name", [name for name in INCREASING if name not in PLAIN])
def test_the_strength_of_an_increasing_operation_grows_with_the_level_unlike_that_of_the_plain_one(name):
    levels = (1.0, 4.0, 6.0, 9.0)
    assert np.all(np.diff([change(name, level) for level in levels]) > 0)
    assert np.any(np.diff([change(name.removesuffix("Increasing"), level) for level in levels]) < 0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("affine", [affine_pillow, affine_opencv])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_gives_a_new_contiguous_image_of_the_same_form(name, affine, channels):
    image = noise(30, 41, channels)
    before = image.copy()
    for level in (-8.0, 9.0):
        found = apply(image, Operation(name, level, "bicubic"), affine)
        assert (found.dtype, found.shape, found.flags.c_contiguous) == (np.uint8, image.shape, True)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("interpolation", "mean", "most"), [("bilinear", 0.6, 1), ("bicubic", 0.9, 16)])
@pytest.mark.parametrize("name", MATRICES)
def test_affine_opencv_equals_affine_pillow(name, interpolation, mean, most, channels):
    # Pillow cuts fractions off where OpenCV rounds: half a grey level on average, 1 at most. The cubic filters differ
    # in their free parameter, which grain shows.
    image = np.asarray(textured(90, 70))[..., :channels]
    for level in (-10.0, -9.1, -3.3, 0.0, 2.2, 5.0, 8.7, 10.0):
        operation = Operation(name, level, interpolation)
        pillow, opencv = (apply(image, operation, affine).astype(int) for affine in (affine_pillow, affine_opencv))
        assert np.abs(pillow - opencv).mean() <= mean
        assert np.abs(pillow - opencv).max() <= most
        black = (apply(np.zeros_like(image), operation, affine) for affine in (affine_pillow, affine_opencv))
        np.testing.assert_array_equal(*black, err_msg="not filled where Pillow fills")


def test_gray_fill_is_the_luma_of_the_color():
    assert FILL[1][0] == Image.new("RGB", (1, 1), FILL[3]).convert("L").getpixel((0, 0))
    moved = apply(noise(20, 20, 1), Operation("TranslateXRel", 10.0), affine_pillow)
    assert (moved[:, 11:] == FILL[1]).all()


def draw(text, count=6000):
    rng = np.random.default_rng(0)
    randaugment = RandAugment.parse(text)
    return [randaugment.draw(rng) for _ in range(count)]


@pytest.mark.parametrize(("text", "operations"), SETS.items())
def test_operations_are_drawn_equally_often_with_replacement(text, operations):
    drawn = draw(text)
    names = [operation.name for image in drawn for operation in image]
    assert set(names) == set(operations)
    assert stats.chisquare([names.count(name) for name in operations]).pvalue > 0.01
    pairs = [image for image in drawn if len(image) == 2]
    assert np.mean([a.name == b.name for a, b in pairs]) == pytest.approx(1 / 15, abs=0.02)


@pytest.mark.parametrize(("text", "num_ops", "rate"), [(RECIPE, 2, 0.5), ("rand-m5-n3-p0.2-inc1", 3, 0.2)])
def test_each_operation_is_applied_with_its_probability(text, num_ops, rate):
    lengths = [len(operations) for operations in draw(text)]
    expected = stats.binom.pmf(range(num_ops + 1), num_ops, rate) * len(lengths)
    assert stats.chisquare(np.bincount(lengths, minlength=num_ops + 1), expected).pvalue > 0.01


def test_magnitude_is_normal_and_clipped_its_sign_and_filter_fair():
    operations = [operation for operations in draw(RECIPE) for operation in operations]
    levels = np.abs([operation.level for operation in operations])
    assert levels.max() == 10
    normal = stats.norm(9, 0.5)
    assert np.mean(levels == 10) == pytest.approx(normal.sf(10), abs=0.01)
    assert stats.kstest(levels[levels < 10], lambda x: normal.cdf(x) / normal.cdf(10)).pvalue > 0.01
    negative = np.array([math.copysign(1, operation.level) < 0 for operation in operations])
    bicubic = np.array([operation.interpolation == "bicubic" for operation in operations])
    assert negative.mean() == pytest.approx(0.5, abs=0.03)
    assert bicubic.mean() == pytest.approx(0.5, abs=0.03)
    assert (negative & bicubic).mean() == pytest.approx(0.25, abs=0.03)


def test_magnitude_without_deviation_is_constant():
    assert {abs(operation.level) for operations in draw("rand-m7-inc1", 50) for operation in operations} == {7.0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (RECIPE, RandAugment(2, 9, 0.5, 0.5, True)),
        ("rand-inc1", RandAugment(2, 10, 0.0, 0.5, True)),
        ("rand-inc1-p0.8-n3-m5", RandAugment(3, 5, 0.0, 0.8, True)),
        ("rand-mstd1-m0-inc0", RandAugment(2, 0, 1.0, 0.5, False)),
        ("rand", RandAugment(2, 10, 0.0, 0.5, False)),
    ],
)
def test_timms_notation_is_read(text, expected):
    assert RandAugment.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rand-m9-mmax40-inc1", "part 'mmax40' is unknown"),
        ("rand-m9-w0-inc1", "part 'w0' is unknown"),
        ("rand-m-inc1", "part 'm' is unknown"),
        ("rand-m9x-inc1", "part 'm9x' is unknown"),
        ("rand--m9-inc1", "part '' is unknown"),
        ("rand-mstd0.5.5-inc1", "part 'mstd0.5.5' is unknown"),
        ("rand-m9-m8-inc1", "m is repeated"),
        ("rand-m9-inc2", "inc is 2; expected 0, or 1 if the strength"),
        ("rand-m9-inc1-inc1", "inc is repeated"),
        ("rand-m9.5-inc1", "m is 9.5; expected an integer from 0 to 10"),
        ("rand-n1.5-inc1", "n is 1.5; expected an integer from 1 to 15"),
        ("rand-n16-inc1", "n is 16; expected an integer"),
        ("rand-m11-inc1", "m is 11; expected"),
        ("rand-n0-inc1", "n is 0; expected"),
        ("rand-p1.5-inc1", "p is 1.5; expected from 0 to 1"),
        ("rand-mstd101-inc1", "mstd is 101; expected from 0 to 100"),
        ("augmix-m5-inc1", "it starts with 'augmix', not 'rand'"),
        ("", "it starts with '', not 'rand'"),
    ],
)
def test_invalid_notation_is_named_with_the_known_parts(text, words):
    with pytest.raises(DataError) as error:
        RandAugment.parse(text)
    assert str(error.value).startswith(f"auto_augment is {text!r}: {words}")
    for part in ("m (an integer", "n (an integer", "p (from", "mstd (from", "inc (0, or 1 if the strength"):
        assert part in str(error.value)


def test_parsed_notation_is_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RandAugment.parse(RECIPE).prob = 1.0


def test_opencv_starts_no_threads():
    assert cv2.getNumThreads() <= 1
