import dataclasses
import io
import itertools
import math
import pickle

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from mambaout_jax.data import DataError, TrainTransform
from mambaout_jax.data.randaugment import RandAugment, affine_pillow, apply
from mambaout_jax.data.train_transform import random_crop_box
from tests.data.photos import encode, make_photo
from tests.data.pictures import gradient, textured
from tests.timm import load_timm

BICUBIC, BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR
PIPELINES = ("exact", "fast")
RECIPE = {
    "size": (64, 64),
    "crop": "random_resized",
    "flip": 0.5,
    "interpolation": "random",
    "auto_augment": "rand-m9-mstd0.5-inc1",
}


def jpeg(width=500, height=375, seed=0):
    file = io.BytesIO()
    textured(width, height, seed).save(file, "JPEG", quality=92)
    return file.getvalue()


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize(
    "content",
    [b"", b"no image", encode(gradient())[:400], encode(gradient(), "PNG")[:-60]],
    ids=["empty", "text", "jpeg", "png"],
)
def test_undecodable_bytes_are_named(content, pipeline):
    with pytest.raises(DataError, match="Pillow cannot decode the image"):
        TrainTransform(**RECIPE, pipeline=pipeline)(content, np.random.default_rng(0))


def test_exact_resizing_is_pillows():
    view = TrainTransform((20, 33))(encode(gradient(), "PNG"), np.random.default_rng(0))
    np.testing.assert_array_equal(view, np.asarray(gradient().resize((33, 20), BICUBIC)))


def test_exact_crop_is_cropped_before_resizing():
    image = make_photo(4)
    view = TrainTransform((24, 24), crop="random_resized")(image, np.random.default_rng(5))
    box = random_crop_box(*image.size, (0.08, 1.0), (3 / 4, 4 / 3), np.random.default_rng(5))
    np.testing.assert_array_equal(view, np.asarray(image.crop(box).resize((24, 24), BICUBIC)))


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_flip_has_its_probability_and_mirrors(pipeline):
    image, rng = gradient(), np.random.default_rng(0)
    plain, always = (TrainTransform((30, 40), flip=flip, pipeline=pipeline)(image, rng) for flip in (0.0, 1.0))
    np.testing.assert_array_equal(always, plain[:, ::-1])
    sometimes = TrainTransform((30, 40), flip=0.3, pipeline=pipeline)
    share = np.mean([(sometimes(image, rng) != plain).any() for _ in range(1000)])
    assert share == pytest.approx(0.3, abs=0.06)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_random_interpolation_draws_both_filters_equally(pipeline):
    image, rng = make_photo(3), np.random.default_rng(0)
    bilinear, bicubic, both = (
        TrainTransform((20, 20), interpolation=kind, pipeline=pipeline) for kind in ("bilinear", "bicubic", "random")
    )
    filters = [transform(image, rng).tobytes() for transform in (bilinear, bicubic)]
    assert filters[0] != filters[1]
    drawn = [filters.index(both(image, rng).tobytes()) for _ in range(400)]
    assert np.mean(drawn) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("width_and_height", [(500, 375), (375, 500), (300, 210)])
def test_random_crop_area_and_log_ratio_are_uniform_among_the_boxes_that_fit(width_and_height):
    (width, height), rng = width_and_height, np.random.default_rng(0)
    scale, ratio = (0.08, 1.0), (3 / 4, 4 / 3)
    boxes = np.array([random_crop_box(width, height, scale, ratio, rng) for _ in range(4000)])
    wide, high = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    # Area and log-ratio are uniform over a rectangle; drawing again until a box fits keeps the part of it where
    # w <= width and h <= height, whose marginals are counted on a grid. 1/2: sides are rounded.
    areas = np.linspace(*scale, 1001)[:, None] * width * height
    log_ratios = np.linspace(math.log(ratio[0]), math.log(ratio[1]), 1001)
    fits = (np.sqrt(areas * np.exp(log_ratios)) < width + 0.5) & (np.sqrt(areas / np.exp(log_ratios)) < height + 0.5)
    drawn_again_ten_times = (1 - fits.mean()) ** 10
    assert drawn_again_ten_times < 1e-3  # else the fallback would show
    for values, grid, axis in ((wide * high, areas[:, 0], 1), (np.log(wide / high), log_ratios, 0)):
        cumulated = fits.sum(axis).cumsum() / fits.sum()
        assert stats.kstest(values, lambda x, g=grid, c=cumulated: np.interp(x, g, c)).pvalue > 0.01
    # Every place is equally likely.
    for first, extent in ((boxes[:, 0], width - wide + 1), (boxes[:, 1], height - high + 1)):
        assert stats.kstest((first + rng.random(len(boxes))) / extent, "uniform").pvalue > 0.01


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (7, 300), (300, 7), (64, 64)])
def test_random_crop_is_inside_the_image(size):
    rng = np.random.default_rng(0)
    for _ in range(200):
        left, top, right, bottom = random_crop_box(*size, (0.08, 1.0), (3 / 4, 4 / 3), rng)
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]


@pytest.mark.parametrize(
    ("size", "box"), [((1000, 30), (480, 0, 520, 30)), ((30, 1000), (0, 480, 30, 520)), ((30, 30), (0, 0, 30, 30))]
)
def test_random_crop_falls_back_to_the_center(size, box):
    class NeverFits:
        def uniform(self, low, high):
            return 0.0 if low < 0 else 1e9

    assert random_crop_box(*size, (0.08, 1.0), (3 / 4, 4 / 3), NeverFits()) == box


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("image_size", "size", "bound"),
    [
        # Boxes up to twice the view: the filters differ in antialiasing alone.
        ((500, 375), (224, 224), 4.0),
        # Reduced by the decoder by two, four and eight on the way.
        ((500, 375), (96, 112), 5.0),
        ((1100, 900), (64, 64), 3.5),
        # Enlarged.
        ((120, 90), (128, 128), 1.0),
        # Elongated: not reduced by the decoder, averaged in one direction.
        ((1200, 100), (96, 96), 2.5),
    ],
)
def test_both_pipelines_give_the_same_crop(image_size, size, bound, channels):
    content = jpeg(*image_size)
    plain = {"size": size, "channels": channels, "crop": "random_resized", "flip": 0.5, "interpolation": "random"}
    for options, seed in itertools.product((plain, {"size": size, "channels": channels}), range(6)):
        exact, fast = (
            TrainTransform(**options, pipeline=pipeline)(content, np.random.default_rng(seed)).astype(int)
            for pipeline in PIPELINES
        )
        assert exact.shape == fast.shape == (*size, channels)
        assert np.abs(exact - fast).mean() < bound


@pytest.mark.parametrize(
    ("image_size", "size"), [((500, 375), (64, 64)), ((500, 375), (224, 224)), ((90, 70), (80, 80))]
)
def test_pipelines_are_not_shifted_against_each_other(image_size, size):
    # One output pixel is up to four gray levels of the gradient: a shift by half a pixel gives two.
    file = io.BytesIO()
    gradient(*image_size).save(file, "JPEG", quality=95, subsampling=0)
    differences = []
    for seed in range(60):
        exact, fast = (
            TrainTransform(size, crop="random_resized", pipeline=pipeline)(file.getvalue(), np.random.default_rng(seed))
            for pipeline in PIPELINES
        )
        differences.append((exact.astype(int) - fast).mean((0, 1)))
    assert np.abs(np.mean(differences, 0)).max() < 0.15


PICTURES = {
    "jpeg": jpeg,
    "cmyk": lambda: encode(textured(300, 200).convert("CMYK")),
    "grey": lambda: encode(textured(300, 200).convert("L")),
    "palette": lambda: encode(textured(300, 200).quantize(64), "PNG"),
    "alpha": lambda: encode(textured(700, 400).convert("RGBA"), "PNG"),
    "1x1": lambda: encode(textured(1, 1)),
    "longish": lambda: jpeg(1500, 7),
    "pillow": lambda: textured(300, 200),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("make", PICTURES.values(), ids=PICTURES)
def test_both_pipelines_make_the_same_draws_and_contiguous_arrays(make, channels):
    content = make()
    generators = [np.random.default_rng(1), np.random.default_rng(1)]
    transforms = [TrainTransform(**RECIPE, channels=channels, pipeline=pipeline) for pipeline in PIPELINES]
    for _ in range(8):
        for transform, rng in zip(transforms, generators, strict=True):
            view = transform(content, rng)
            assert (view.dtype, view.shape, view.flags.c_contiguous) == (np.uint8, (64, 64, channels), True)
        assert generators[0].bit_generator.state == generators[1].bit_generator.state


def test_images_not_reduced_by_the_decoder_are_averaged():
    # Lines of one pixel: a filter that reads two of twelve neighbors shows them, a mean does not.
    lines = np.zeros((600, 600), np.uint8)
    lines[:, ::2] = 255
    content = encode(Image.fromarray(lines), "PNG")
    view = TrainTransform((50, 50), channels=1, interpolation="bilinear", pipeline="fast")(
        content, np.random.default_rng(0)
    )
    assert np.abs(view.astype(int) - 127).max() < 3


def draws(image, seed):
    """Return the box, filter, flip and operations of a seed, drawn in the order of the transform."""
    rng = np.random.default_rng(seed)
    box = random_crop_box(*image.size, (0.08, 1.0), (3 / 4, 4 / 3), rng)
    interpolation = "bilinear" if rng.random() < 0.5 else "bicubic"
    return box, interpolation, rng.random() < 0.5, RandAugment.parse(RECIPE["auto_augment"]).draw(rng)


@pytest.mark.slow
def test_exact_pipeline_crops_resizes_flips_and_augments_in_this_order():
    content, exact = jpeg(), TrainTransform(**RECIPE, pipeline="exact")
    for seed in range(40):
        box, interpolation, flipped, operations = draws(textured(500, 375), seed)
        image = Image.open(io.BytesIO(content)).crop(box)
        image = image.resize((64, 64), {"bilinear": BILINEAR, "bicubic": BICUBIC}[interpolation])
        expected = np.asarray(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else image)
        for operation in operations:
            expected = apply(expected, operation, affine_pillow)
        np.testing.assert_array_equal(exact(content, np.random.default_rng(seed)), expected, err_msg=f"seed {seed}")


@pytest.mark.torch
def test_exact_pipeline_equals_timm_for_the_same_draws(monkeypatch):
    load_timm()
    from timm.data import auto_augment, create_transform

    content, exact = jpeg(), TrainTransform(**RECIPE, pipeline="exact")
    theirs = create_transform(
        (3, 64, 64), is_training=True, auto_augment=RECIPE["auto_augment"], interpolation="random", normalize=False
    )
    crop, flip, randaugment, _ = theirs.transforms
    drawable = {op.name: op for op in randaugment.ops}
    seen = set()
    for seed in range(60):
        box, interpolation, flipped, operations = draws(textured(500, 375), seed)
        left, top, right, bottom = box
        monkeypatch.setattr(crop, "get_params", lambda *_, b=(top, left, bottom - top, right - left): b)
        monkeypatch.setattr(crop, "interpolation", crop.interpolation[("bilinear", "bicubic").index(interpolation)])
        flip.p = float(flipped)
        image = flip(crop(Image.open(io.BytesIO(content))))
        for operation in operations:
            op, negative = drawable[operation.name], operation.level < 0
            seen.add(operation.name)
            op.prob, op.magnitude, op.magnitude_std = 1.0, abs(operation.level), 0
            op.kwargs["resample"] = {"bilinear": BILINEAR, "bicubic": BICUBIC}[operation.interpolation]
            monkeypatch.setattr(auto_augment, "_randomly_negate", lambda value, n=negative: -value if n else value)
            image = op(image)
        monkeypatch.undo()
        np.testing.assert_array_equal(exact(content, np.random.default_rng(seed)), np.asarray(image))
    assert seen == set(drawable)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_pickled_transform_is_the_same(pipeline):
    transform = TrainTransform(**RECIPE, pipeline=pipeline)
    copy = pickle.loads(pickle.dumps(transform))
    views = [each(jpeg(), np.random.default_rng(3)) for each in (transform, copy)]
    np.testing.assert_array_equal(*views)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": (0, 8)}, "size is"),
        ({"size": (8, 8, 3)}, "size is"),
        ({"channels": 4}, "channels \\(in_chans of the model\\) is 4"),
        ({"crop": "centre"}, "crop is 'centre'; expected one of resize, random_resized"),
        ({"scale": (0.0, 1.0)}, "scale is"),
        ({"scale": (0.5, 1.5)}, "scale is"),
        ({"ratio": (2.0, 1.0)}, "ratio is"),
        ({"flip": 2.0}, "flip is 2.0"),
        ({"interpolation": "nearest"}, "expected one of bilinear, bicubic, random"),
        ({"pipeline": "quick"}, "pipeline is 'quick'; expected one of exact, fast"),
        ({"auto_augment": "rand-m9-x1-inc1"}, "part 'x1' is unknown"),
    ],
)
def test_options_out_of_range_are_named(options, words):
    with pytest.raises(DataError, match=words):
        TrainTransform(**{"size": (8, 8)} | options)


def test_transform_is_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainTransform((8, 8)).size = (9, 9)
