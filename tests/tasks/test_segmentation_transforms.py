"""Host transforms of image and label map: those of mmsegmentation for the same draws."""

import cv2
import numpy as np
import pytest

from mambaout_jax.data import DataError
from mambaout_jax.data.label_maps import IGNORED, decode_label_map
from mambaout_jax.tasks.images import fit_size, place, resize_image
from mambaout_jax.tasks.segmentation.canvases import EvalSizes
from mambaout_jax.tasks.segmentation.transforms import (
    Decoder,
    EvalExample,
    TrainExample,
    distort,
    draw_box,
    draw_crop,
    resize_labels,
)
from tests.models import dense_golden


class Replay:
    """A generator that returns recorded draws, of which all must be used."""

    def __init__(self, draws):
        self._draws = list(draws)

    def _next(self, kind, *arguments):
        name, given, value = self._draws.pop(0)
        assert name == kind
        assert [float(text) for text in given] == [float(x) for x in arguments]
        return value

    def random(self):
        if self._draws[0][0] == "choice":
            return 0.0 if self._draws.pop(0)[2] == "horizontal" else 1.0
        return self._next("random_sample")

    def integers(self, *bounds):
        return int(self._next("randint", *bounds))

    def uniform(self, low, high):
        return self._next("uniform", low, high)

    def finish(self):
        assert not self._draws


def steps_of(case):
    """Yield type, options, draws and results of each transform of a case, with what it is applied to."""
    image, labels = case.inputs["image"], case.inputs["label"]
    for index, (step, draws) in enumerate(zip(case.record["pipeline"], case.record["draws"], strict=True)):
        kind = step["type"]
        expected = case.outputs[f"image_{index}_{kind}"], case.outputs[f"label_{index}_{kind}"]
        yield kind, step, Replay(draws), (image, labels), expected
        image, labels = expected


@pytest.mark.parametrize("name", dense_golden.names("seg_transforms__*"))
def test_each_transform_gives_the_pixels_of_the_reference(name):
    for kind, step, rng, (image, labels), (expected_image, expected_labels) in steps_of(dense_golden.load(name)):
        match kind:
            case "RandomResize":
                size = fit_size(labels.shape, draw_box(tuple(step["scale"]), tuple(step["ratio_range"]), rng))
                labels, image = resize_labels(labels, size), resize_image(image, size)
            case "RandomCrop":
                height, width = step["crop_size"]
                top, left = draw_crop(labels, (height, width), step["cat_max_ratio"], rng)
                labels = labels[top : top + height, left : left + width]
                image = image[top : top + height, left : left + width]
            case "RandomFlip":
                if rng.random() < step["prob"]:
                    image, labels = image[:, ::-1], labels[:, ::-1]
            case "PhotoMetricDistortion":
                image = distort(np.ascontiguousarray(image[..., ::-1]), rng)[
                    ..., ::-1
                ]  # images of the reference are BGR
        rng.finish()
        np.testing.assert_array_equal(labels, expected_labels, err_msg=kind)
        difference = np.abs(image.astype(int) - expected_image)
        assert difference.max() <= (1 if kind == "RandomResize" else 2 if kind == "PhotoMetricDistortion" else 0), kind
        assert difference.mean() < 0.05, kind


@pytest.mark.parametrize("name", dense_golden.names("resize_sizes__*"))
def test_images_are_fitted_into_the_box_as_by_the_reference(name):
    case = dense_golden.load(name)
    box = case.record["scale"]
    for (width, height), expected in zip(
        case.inputs["size_wh"].tolist(), case.outputs["size_wh"].tolist(), strict=True
    ):
        assert fit_size((height, width), tuple(box)) == tuple(expected[::-1])


def png(pixels):
    return cv2.imencode(".png", pixels)[1].tobytes()


def record(height, width, num_classes=5, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    labels = rng.integers(0, num_classes, (height, width), dtype=np.uint8)
    return {"image": png(image[..., ::-1]), "label_map": png(labels)}, image, labels


def train_example(**changes):
    options = {
        "size": (32, 48),
        "box": (32, 64),
        "ratio": (0.5, 2.0),
        "cat_max_ratio": 0.75,
        "flip": 0.5,
        "photometric": True,
    }
    return TrainExample(Decoder(3, 5), **options | changes)


def test_image_and_labels_share_the_geometry():
    """An image that shows its labels still does so after the transform, up to interpolated pixels."""
    labels = np.zeros((60, 90), np.uint8)
    labels[:, 30:60], labels[20:40, 60:] = 1, 2
    shown = np.stack([labels * 100] * 3, -1)
    transform = train_example(photometric=False)
    for seed in range(20):
        example = transform({"image": png(shown), "label_map": png(labels)}, np.random.default_rng(seed))
        valid = example["label"] != IGNORED
        assert valid.sum() == example["size"].prod()
        same = example["image"][..., 0][valid] == example["label"][valid] * 100
        assert same.mean() > 0.85


def test_a_training_example_is_a_function_of_the_record_and_the_generator():
    given, _, _ = record(70, 50)
    first, again = (train_example()(given, np.random.default_rng(3)) for _ in range(2))
    other = train_example()(given, np.random.default_rng(4))
    for key in first:
        np.testing.assert_array_equal(first[key], again[key])
    assert not np.array_equal(first["image"], other["image"])


@pytest.mark.parametrize("size", [(10, 7), (33, 500), (64, 96)])
def test_examples_have_the_shapes_of_empty_ones(size):
    given, _, _ = record(*size)
    sizes = EvalSizes((32, 64), (1.0, 1.5), "box", None, None)
    several = EvalExample(Decoder(3, 5), sizes, sizes.canvases(None, (64, 500)))
    one = EvalExample(Decoder(3, 5), sizes, sizes.canvases(size, size))
    for transform, arguments in ((train_example(), (np.random.default_rng(0),)), (several, ()), (one, ())):
        example, empty = transform(given, *arguments), transform.empty()
        flat = [dense_golden.flatten(tree) for tree in (example, empty)]
        assert flat[0].keys() == flat[1].keys()
        for key, value in flat[0].items():
            assert (np.shape(value), np.asarray(value).dtype) == (
                np.shape(flat[1][key]),
                np.asarray(flat[1][key]).dtype,
            )


def test_a_canvas_has_the_resized_image_at_its_top_left():
    given, image, labels = record(30, 100)
    sizes = EvalSizes((32, 64), (1.0,), "box", None, None)
    transform = EvalExample(Decoder(3, 5), sizes, sizes.canvases(None, (64, 200)))
    example = transform(given)
    height, width = example["sizes"]["scale_0"]
    (canvas,) = transform.canvases.images[int(example["shape"])]
    pixels = example["images"]["scale_0"][: canvas[0] * canvas[1] * 3].reshape(*canvas, 3)
    assert (height, width) == fit_size((30, 100), (32, 64))
    np.testing.assert_array_equal(pixels[:height, :width], resize_image(image, (height, width)))
    assert not pixels[height:].any()
    np.testing.assert_array_equal(example["label"], place(labels, (64, 200), IGNORED))


def test_wrong_records_are_named():
    given, _, labels = record(20, 30)
    decoder = Decoder(3, 5)
    wrong = {
        "the label map is 20x29 .height x width. and its image 20x30": png(labels[:, :29]),
        "the label map has the label 7; expected 0 to 4 for the 5 classes of the dataset, or 255": png(
            np.full((20, 30), 7, np.uint8)
        ),
        "the label map has pixels of mode RGB": png(np.zeros((20, 30, 3), np.uint8)),
        "the label map has pixels of mode I;16": png(np.zeros((20, 30), np.uint16)),
        "the label map cannot be decoded .its format is unknown": b"GIF",
    }
    for words, label_map in wrong.items():
        with pytest.raises(DataError, match=words):
            decoder({**given, "label_map": label_map})


def test_ignored_pixels_are_no_class():
    given, _, labels = record(20, 30)
    labels[3:5] = IGNORED
    np.testing.assert_array_equal(Decoder(3, 5)({**given, "label_map": png(labels)})[1], labels)


def test_palettes_are_read_as_labels(tmp_path):
    from PIL import Image

    labels = np.random.default_rng(0).integers(0, 5, (8, 9), dtype=np.uint8)
    image = Image.fromarray(labels, "P")
    image.putpalette(list(range(256)) * 3)
    image.save(tmp_path / "labels.png")
    np.testing.assert_array_equal(decode_label_map((tmp_path / "labels.png").read_bytes()), labels)
