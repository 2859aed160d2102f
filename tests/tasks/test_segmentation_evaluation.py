"""Label maps and metrics of images in canvases are those of the images alone, at their original size."""

import io
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import mambaout_jax as mo
from mambaout_jax.data import DataError
from mambaout_jax.data.label_maps import IGNORED
from mambaout_jax.evaluate.evaluation import sum_totals
from mambaout_jax.ops import resize_bilinear
from mambaout_jax.run.config import default_config, parse_config
from mambaout_jax.tasks.api import TaskConfig, stack_examples
from mambaout_jax.tasks.errors import TaskError
from mambaout_jax.tasks.segmentation import predictor
from mambaout_jax.tasks.segmentation.canvases import EvalSizes
from mambaout_jax.tasks.segmentation.evaluation import Windows, segment
from mambaout_jax.tasks.segmentation.metrics import Areas, count_areas, iou, join_sums, recall, sum_areas, summarize
from mambaout_jax.tasks.segmentation.report import make_gallery
from mambaout_jax.tasks.segmentation.task import Segmentation
from mambaout_jax.tasks.segmentation.transforms import Decoder, EvalExample
from tests.models import dense_golden
from tests.tasks.plain_inference import mean_probabilities, sliding_logits, whole_logits

NUM_CLASSES = 4


@pytest.fixture(scope="module")
def network():
    """Return a small network whose predictions differ between pixels."""
    case = dense_golden.load("segmentor__mambaout_whole_inference")
    model = mo.create_model(
        "upernet", backbone="mambaout_femto", dims=(8, 12, 16, 24), depths=(1, 1, 2, 1), num_classes=NUM_CLASSES,
        channels=12, auxiliary_channels=16,
    )  # fmt: skip
    return model, mo.from_torch(model, case.state_dict)


def images(*sizes):
    rng = np.random.default_rng(0)
    return [
        np.repeat(np.repeat(rng.integers(0, 256, (-(-h // 8), -(-w // 8), 3), dtype=np.uint8), 8, 0), 8, 1)[:h, :w]
        for h, w in sizes
    ]


def predict(network, sizes, canvases, pictures, **options):
    """Return the label maps of pictures, each without its canvas."""
    model, variables = network
    transform = EvalExample(Decoder(3, NUM_CLASSES), sizes, canvases)
    examples = [transform.place_image(picture) for picture in pictures]
    batch = jax.tree.map(lambda *rows: np.stack(rows), *examples)
    run = jax.jit(partial(segment, model, canvases=canvases, **options))
    labels = np.asarray(run(variables, batch))
    for row, picture in zip(labels, pictures, strict=True):
        outside = np.ones(row.shape, bool)
        outside[: picture.shape[0], : picture.shape[1]] = False
        assert (row[outside] == IGNORED).all()
    return [row[: picture.shape[0], : picture.shape[1]] for row, picture in zip(labels, pictures, strict=True)]


def resized(network, sizes, picture):
    """Return the normalized images of a picture at each scale."""
    import cv2

    model, _ = network
    return [
        model.input_spec.normalize(jnp.asarray(cv2.resize(picture, size[::-1], interpolation=cv2.INTER_LINEAR))[None])
        for size in sizes.sizes(picture.shape[:2])
    ]


def assert_nearly_equal(ours, expected):
    """Rounding may change the class of single pixels between two classes."""
    assert ours.shape == expected.shape
    assert np.mean(ours != expected) < 2e-3
    assert len(np.unique(expected)) > 1


@pytest.mark.slow
def test_images_of_one_size_are_segmented_as_without_a_canvas(network):
    model, variables = network
    sizes = EvalSizes((64, 128), (1.0,), "box", None, None)
    pictures = images((48, 80), (48, 80))
    found = predict(network, sizes, sizes.canvases((48, 80), (48, 80)), pictures)
    for picture, labels in zip(pictures, found, strict=True):
        (image,) = resized(network, sizes, picture)
        expected = resize_bilinear(whole_logits(model, variables, image), picture.shape[:2])[0].argmax(-1)
        assert_nearly_equal(labels, np.asarray(expected))


@pytest.mark.slow
def test_images_of_several_sizes_are_segmented_in_padded_canvases(network):
    model, variables = network
    sizes = EvalSizes((64, 256), (1.0,), "box", None, None)
    pictures = images((40, 50), (90, 30), (70, 200))
    canvases = sizes.canvases(None, (96, 224))
    assert len(canvases.images) > 2
    found = predict(network, sizes, canvases, pictures)
    for picture, labels in zip(pictures, found, strict=True):
        (image,) = resized(network, sizes, picture)
        height, width = image.shape[1:3]
        (canvas,) = canvases.images[canvases.shape_of([(height, width)])]
        padded = jnp.pad(image, ((0, 0), (0, canvas[0] - height), (0, canvas[1] - width), (0, 0)))
        logits = whole_logits(model, variables, padded)[:, :height, :width]
        assert_nearly_equal(labels, np.asarray(resize_bilinear(logits, picture.shape[:2])[0].argmax(-1)))


@pytest.mark.slow
def test_scales_and_flips_are_averaged(network):
    model, variables = network
    sizes = EvalSizes((64, 128), (0.5, 1.0), "image", None, None)
    pictures = images((64, 96))
    (labels,) = predict(network, sizes, sizes.canvases((64, 96), (64, 96)), pictures, flip=True)
    passes = []
    for image in resized(network, sizes, pictures[0]):
        flipped = whole_logits(model, variables, image[:, :, ::-1])[:, :, ::-1]
        passes += [resize_bilinear(logits, (64, 96)) for logits in (whole_logits(model, variables, image), flipped)]
    assert_nearly_equal(labels, np.asarray(mean_probabilities(passes)[0].argmax(-1)))


@pytest.mark.slow
def test_windows_lie_within_the_image(network):
    model, variables = network
    sizes = EvalSizes((64, 256), (1.0,), "box", 64, None)
    pictures = images((64, 110), (70, 64), (150, 81))
    found = predict(network, sizes, sizes.canvases(None, (160, 160)), pictures, windows=Windows(64, 40))
    for picture, labels in zip(pictures, found, strict=True):
        (image,) = resized(network, sizes, picture)
        logits = sliding_logits(model, variables, image, 64, 40)
        assert_nearly_equal(labels, np.asarray(resize_bilinear(logits, picture.shape[:2])[0].argmax(-1)))


def encode(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("windows", [None, Windows(32, 24)])
def test_label_maps_of_image_files_are_those_of_the_evaluation(network, monkeypatch, windows):
    """Images are evaluated at less than their size: logits are enlarged, not labels, in several parts."""
    monkeypatch.setattr(predictor, "PART_SIDE", 64)
    model, variables = network
    sizes = EvalSizes((32, 48), (1.0,), "box", windows and windows.side, None)
    pictures = images((75, 90), (100, 70))
    predict_files = predictor.SegmentationPredictor(model, sizes, {}, flip=False, windows=windows)
    batch = stack_examples(predict_files, [predict_files.prepare(encode(picture)) for picture in pictures], 3)
    *found, padding = predict_files(variables, batch)
    assert padding.labels.size == 0
    evaluated = predict(network, sizes, sizes.canvases(None, (128, 128)), pictures, windows=windows)
    for ours, expected in zip(found, evaluated, strict=True):
        assert_nearly_equal(ours.labels, expected)


def test_models_of_one_size_need_windows_of_that_size():
    with pytest.raises(TaskError, match=r"config\.eval\.window=64"):
        EvalSizes((64, 256), (1.0,), "box", None, (64, 64)).canvases(None, (100, 100))
    EvalSizes((64, 256), (1.0,), "box", 64, (64, 64)).canvases(None, (100, 100))
    EvalSizes((64, 256), (1.0,), "box", None, (64, 64)).canvases((64, 64), (64, 64))


def test_windows_cover_every_pixel():
    with pytest.raises(TaskError, match=r"eval\.stride is 65 and config\.eval\.window 64, .* at most 64$"):
        Windows(64, 65)


@pytest.mark.parametrize(("options", "stride"), [({}, 42), ({"stride": 64}, 64), ({"stride": 65}, None)])
def test_the_stride_follows_the_window_and_does_not_exceed_it(options, stride):
    config = default_config("segmentation")
    config.data.name, config.model.name = "digit_scenes", "upernet_mambaout_femto"
    config.eval.update(window=64, **options)
    parsed = parse_config(config)
    if stride is None:
        with pytest.raises(TaskError, match="at most 64"):
            parsed.build_task()
    else:
        assert parsed.build_task()._windows() == Windows(64, stride)


@pytest.mark.parametrize("channels", [2, 4])
def test_images_have_one_or_three_channels(channels):
    config = default_config("segmentation")
    config.data.name = "digit_scenes"
    config.model.update(name="upernet_mambaout_femto", in_chans=channels)
    with pytest.raises(DataError, match=f"in_chans of the model. is {channels}; expected 1 .gray. or 3 .RGB."):
        parse_config(config).build_task().check()


def test_pixels_of_a_class_are_counted_beyond_32_bits():
    """Within a batch of large images, and over batches."""
    areas = jnp.full((3, 2), 2**30 + 5, jnp.int32)
    totals = [jax.device_get({"labeled": sum_areas(areas)})] * 7
    assert join_sums(sum_totals(totals)["labeled"]).tolist() == [21 * (2**30 + 5)] * 2


def test_counts_are_summed_beyond_32_bits():
    totals = [{"labeled": np.array([2**31 - 1, 1], np.int32), "count": np.int32(3), "loss": np.float32(0.5)}] * 3
    found = sum_totals(totals)
    assert found["labeled"].tolist() == [3 * (2**31 - 1), 3]
    assert (found["count"], found["loss"]) == (9.0, 1.5)


@pytest.mark.parametrize(
    ("label_map", "words"),
    [
        (np.full((4, 4), IGNORED, np.uint8), "has a labeled pixel; check"),
        (b"GIF", r"has a labeled pixel \(the label map"),
    ],
)
def test_label_maps_without_a_labeled_pixel_have_no_baseline(label_map, words):
    if isinstance(label_map, np.ndarray):
        file = io.BytesIO()
        Image.fromarray(label_map).save(file, "PNG")
        label_map = file.getvalue()
    config = default_config("segmentation")
    config.data.name = "digit_scenes"
    config.model.update(name="upernet_mambaout_femto")
    with pytest.raises(TaskError, match=f"none of 3 training records {words}"):
        parse_config(config).build_task().baseline_score([{"label_map": label_map}] * 3)


def test_a_split_without_labeled_pixels_has_no_scores():
    empty = np.zeros((2, NUM_CLASSES), np.int64)
    assert all(np.isnan(score) for score in summarize(Areas(*[empty[0]] * 3)).values())
    task = Segmentation(TaskConfig(None, None, {}, {}))
    with pytest.raises(TaskError, match="'val' of toy has no labeled pixels"):
        task.score({**dict.fromkeys(Areas._fields, empty), "count": 1}, [], SimpleNamespace(name="toy", split="val"))


def test_images_without_labeled_pixels_are_not_among_the_worst():
    areas = np.zeros((3, 3, NUM_CLASSES), np.int64)
    areas[1:, 1:, 0] = 9
    areas[2, 0, 0] = 9

    def open_split():
        raise DataError("not here")

    gallery = make_gallery({"areas": areas, "maps": None, "fingerprint": ""}, None, [], open_split)
    assert [card["index"] for card in gallery["worst"]] == [1, 2]
    assert [(card["index"], card["miou"]) for card in gallery["others"]] == [(0, "no labeled pixels")]


@pytest.mark.parametrize("name", dense_golden.names("iou_metric__*"))
def test_metrics_are_those_of_the_reference(name):
    case = dense_golden.load(name)
    count = case.record["num_classes"]
    pairs = [(case.inputs[f"pred{i}"], case.inputs[f"label{i}"]) for i in range(len(case.inputs) // 2)]
    counted = [count_areas(jnp.asarray(predicted), jnp.asarray(labels), count) for predicted, labels in pairs]
    areas = Areas(*(sum(np.asarray(area, np.int64) for area in parts) for parts in zip(*counted, strict=True)))
    case.assert_close("outputs/area_intersect", areas.intersection)
    case.assert_close("outputs/area_label", areas.labeled)
    case.assert_close("outputs/area_pred", areas.predicted)
    case.assert_close("outputs/IoU", iou(areas).astype(np.float32))
    case.assert_close("outputs/Acc", recall(areas).astype(np.float32))
    scores = summarize(areas)
    found = [round(100 * scores[key]) for key in ("miou", "macc", "aacc")]
    np.testing.assert_array_equal(found, case.outputs["percent_times_100"])
