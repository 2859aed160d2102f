"""Objects, masks and average precision are those of COCO's tools and mmdetection."""

import json
import sys
import types

import numpy as np
import pytest

import mambaout_jax as mo
from mambaout_jax.data import DataError
from mambaout_jax.run.config import default_config, parse_config
from mambaout_jax.tasks.detection import report
from mambaout_jax.tasks.detection.evaluation import (
    KINDS,
    STATISTICS,
    ImageDetections,
    _evaluation_tools,
    average_precision,
)
from mambaout_jax.tasks.detection.objects import (
    MaskPaster,
    Objects,
    crop_mask,
    decode_masks,
    encode_segmentation,
    parse_annotations,
)
from mambaout_jax.tasks.detection.transforms import EvalExample, ImageTransform, OrientedCanvases
from mambaout_jax.tasks.errors import TaskError
from tests.models import dense_golden, golden


@pytest.mark.parametrize("name", dense_golden.names("mask_paste__*"))
def test_masks_are_pasted_as_by_mmdetection(name):
    case = dense_golden.load(name)
    boxes = case.inputs["bboxes"] / np.array(case.record["scale_factor"] * 2, np.float32)
    case.assert_close("outputs/bboxes", boxes)
    paster, labels = MaskPaster(tuple(case.record["ori_shape"])), case.inputs["labels"]
    for index, box in enumerate(boxes):  # in the same memory, from which earlier masks disappear
        ours = paster.paste(case.inputs["mask_pred"][index, labels[index]], box)
        # Probabilities next to 1/2 may differ by rounding.
        assert np.count_nonzero(ours != case.outputs["masks"][index]) <= 2


def read_case(name):
    """Return objects and detections of a case by image id, and the class of each category."""
    folder = golden.path(name).with_suffix("")
    truth, results = (json.loads((folder / f"{file}.json").read_text()) for file in ("gt", "dets"))
    index_of = {entry["id"]: index for index, entry in enumerate(truth["categories"])}
    objects, found = {}, {}
    for image in truth["images"]:
        key, size = image["id"], (image["height"], image["width"])
        text = json.dumps([entry for entry in truth["annotations"] if entry["image_id"] == key])
        objects[key] = parse_annotations(text, index_of, size)
        own = [entry for entry in results if entry["image_id"] == key]
        boxes = np.array([entry["bbox"] for entry in own], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        found[key] = ImageDetections(
            boxes,
            np.array([entry["score"] for entry in own]),
            np.array([index_of[entry["category_id"]] for entry in own], int),
            [encode_segmentation(entry["segmentation"], size, boxes[i]) for i, entry in enumerate(own)],
        )
    return objects, found


@pytest.fixture(params=["pycocotools", "faster_coco_eval"])
def tools(request, monkeypatch):
    """Evaluate with either package."""
    pytest.importorskip(request.param)
    if request.param == "pycocotools":
        monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    assert _evaluation_tools()[0].__module__.partition(".")[0] == request.param


@pytest.mark.parametrize("name", dense_golden.names("coco_ap__*"))
def test_average_precision_is_that_of_pycocotools(name, tools):
    case = dense_golden.load(name)
    scores = average_precision(*read_case(name))
    for kind, iou_type in KINDS.items():
        expected = case.outputs[f"{iou_type}/stats"]
        expected = np.where(expected < 0, expected, 100 * expected)
        np.testing.assert_allclose([scores[f"{kind}_{key}"] for key in STATISTICS], expected, atol=1e-9)


def test_images_that_were_not_evaluated_are_left_out():
    objects, found = read_case("coco_ap__one_category_few")
    some = dict(list(found.items())[: len(found) // 2])
    assert average_precision(objects, some) == average_precision({key: objects[key] for key in some}, some)


def test_nothing_found_scores_zero():
    objects, found = read_case("coco_ap__one_category_few")
    empty = ImageDetections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), [])
    scores = average_precision(objects, dict.fromkeys(found, empty))
    assert scores["box_ap"] == scores["mask_ap"] == 0


@pytest.mark.parametrize("name", dense_golden.names("coco_dataset__*"))
def test_objects_are_parsed_as_by_mmdetection(name):
    """The annotations that training uses and the crowds are those of the reference, by their boxes."""
    case = dense_golden.load(name)
    truth = case.record["annotations"]
    wanted = [entry["id"] for entry in truth["categories"] if entry["name"] in case.record["classes"]]
    index_of = {key: index for index, key in enumerate(wanted)}
    images = {entry["id"]: entry for entry in truth["images"]}
    for number, key in enumerate(case.outputs["image_ids"].tolist()):
        image = images[key]
        text = json.dumps([entry for entry in truth["annotations"] if entry["image_id"] == key])
        objects = parse_annotations(text, index_of, (image["height"], image["width"]))
        rows = np.flatnonzero(case.outputs["image"] == number)
        ignored = case.outputs["ignore"][rows].astype(bool)
        np.testing.assert_allclose(objects.boxes[objects.trainable], case.outputs["bboxes"][rows][~ignored], atol=4e-3)
        np.testing.assert_array_equal(objects.classes[objects.trainable], case.outputs["labels"][rows][~ignored])


def test_segmentations_of_all_kinds_are_bitmaps():
    size = (8, 10)
    square = np.zeros(size, np.uint8)
    square[2:5, 3:7] = 1
    polygon = [[3, 2, 7, 2, 7, 5, 3, 5]]
    counts = np.diff(np.flatnonzero(np.diff(np.concatenate([[0], square.T.ravel(), [0]]))), prepend=0).tolist()
    counts.append(square.size - sum(counts))
    box = np.array([3.0, 2.0, 7.0, 5.0])
    for segmentation in (square, polygon, {"size": list(size), "counts": counts}, None, [], [[1, 2, 3, 4]]):
        encoded = encode_segmentation(segmentation, size, box)
        np.testing.assert_array_equal(decode_masks([encoded])[0], square)


def test_a_mask_of_another_image_is_an_error():
    with pytest.raises(DataError):
        encode_segmentation({"size": [9, 10], "counts": [90]}, (8, 10), np.array([0, 0, 2, 2]))


def test_no_mask_is_no_bitmap():
    assert decode_masks([]).shape == (0, 0, 0)


def test_cropped_masks_cover_the_box():
    bitmap = np.zeros((20, 30), np.uint8)
    bitmap[5:15, 10:20] = 1
    assert crop_mask(bitmap, np.array([10, 5, 20, 15]), 112).all()
    half = crop_mask(bitmap, np.array([10, 5, 30, 15]), 112)
    np.testing.assert_array_equal(half, np.broadcast_to(np.arange(112) < 56, (112, 112)))
    outside = crop_mask(np.ones((20, 30), np.uint8), np.array([-10, 0, 10, 20]), 112)
    np.testing.assert_array_equal(outside, np.broadcast_to(np.arange(112) >= 56, (112, 112)))


def objects_in(boxes, classes, crowd):
    boxes = np.asarray(boxes, float)
    sides = boxes[:, 2:] - boxes[:, :2]
    return Objects(
        boxes, np.asarray(classes, np.int32), np.asarray(crowd), sides.prod(1), [None] * len(boxes), (60, 80), [1, 2]
    )


def test_detections_on_crowds_and_second_detections():
    """A second detection of an object is a false positive, one on a crowd is not, and one of another class is."""
    objects = objects_in([[0, 0, 10, 10], [20, 20, 60, 50]], [1, 1], [False, True])
    boxes = np.array([[0, 0, 10, 9], [0, 1, 10, 10], [30, 30, 40, 40], [30, 30, 40, 40]], np.float32)
    scores = np.array([0.9, 0.8, 0.7, 0.6], np.float32)
    matches = report.match(ImageDetections(boxes, scores, np.array([1, 1, 1, 0]), [None] * 4), objects)
    assert matches.correct.tolist() == [True, False, True, False]
    assert matches.found.tolist() == [True]
    assert matches.errors == 2


def detection():
    config = default_config("detection")
    config.data.name, config.model.name = "shapes", "mask_rcnn_mambaout_femto"
    return parse_config(config).build_task()


def test_a_split_without_objects_has_no_score():
    source = types.SimpleNamespace(
        all_objects={5: objects_in([[0, 0, 9, 9]], [0], [True])}, split="test", name="shapes"
    )
    task = detection()
    with pytest.raises(TaskError, match="'test' of shapes has no objects"):
        task.score({"count": 1}, [], source)


@pytest.mark.parametrize("size", [(48, 64), (400, 100), (30, 900), (1, 1)])
def test_images_of_any_shape_fit_the_canvas_of_position_embeddings(size):
    images = ImageTransform(3, False, OrientedCanvases((64, 128), ((64, 96),)))
    image = np.zeros((*size, 3), np.uint8)
    example = EvalExample(images).of_image(image)
    assert example["image"].shape == (64, 96, 3)
    assert (example["size"] <= (64, 96)).all()


def test_80_classes_without_names_are_those_of_coco():
    """The category ids of COCO have gaps, so that those of predictions would be wrong otherwise."""
    model = mo.create_model("mask_rcnn_mambaout_femto", depths=(1, 1, 1, 1), dims=(4, 4, 4, 4), num_classes=80)
    task = detection()
    imported = task.imported_labels(model, {"class_names": None})
    assert imported.dataset == "coco2017"
    assert "assuming those of COCO" in imported.remark
    pairs = dict(zip(imported.labels["category_ids"], imported.labels["class_names"], strict=True))
    assert (pairs[1], pairs[13], pairs[90]) == ("person", "stop sign", "toothbrush")
    named = task.imported_labels(model, {"class_names": [str(i) for i in range(80)]})
    assert (named.remark, "category_ids" in named.labels) == ("", False)
