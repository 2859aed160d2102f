"""Images, boxes and masks are transformed as by mmdetection."""

import numpy as np
import pytest

from mambaout_jax.tasks.detection.objects import Objects, crop_mask
from mambaout_jax.tasks.detection.transforms import ImageTransform, OrientedCanvases, TrainExample
from mambaout_jax.tasks.images import fit_size, resize_image
from tests.models import dense_golden


def objects_of(case):
    """Return the objects of a case."""
    size = case.inputs["image"].shape[:2]
    instances = case.record["instances"]
    boxes = np.array([each["bbox"] for each in instances], np.float64)
    return Objects(
        boxes,
        np.array([each["bbox_label"] for each in instances], np.int32),
        np.array([bool(each["ignore_flag"]) for each in instances]),
        np.prod(boxes[:, 2:] - boxes[:, :2], axis=1),
        [each["mask"] for each in instances],
        size,
        list(range(len(instances))),
    )


@pytest.mark.parametrize("name", dense_golden.names("det_transforms__*"))
def test_examples_are_those_of_mmdetection(name):
    case = dense_golden.load(name)
    objects, image = objects_of(case), case.inputs["image"]
    box = tuple(sorted(case.record["pipeline"][1]["scale"]))
    flip = case.record["flip"]
    masks = np.stack([objects.bitmap(index) for index in range(len(objects))])
    np.testing.assert_array_equal(masks, case.outputs["masks_0_LoadAnnotations"])
    images = ImageTransform(3, False, OrientedCanvases.of_images(image.shape[:2], box))
    view = images.view(image.shape[:2])
    placed = images.place_image(resize_image(image, view.size), 0, flip=flip)
    height, width = placed["size"]
    expected = case.outputs["image_2_RandomFlip"].astype(int)
    assert (height, width) == expected.shape[:2]
    assert np.abs(placed["image"][:height, :width] - expected).max() <= 2
    example = TrainExample(images, 8, 0.0)._place_objects(objects, view, flip=flip)
    present = example["present"]
    case.assert_close("outputs/gt_instances/bboxes", example["boxes"][present])
    np.testing.assert_array_equal(example["classes"][present], case.outputs["gt_instances/labels"])
    resized = case.outputs["masks_2_RandomFlip"][~case.outputs["ignore"].astype(bool)]
    for mask, found, whole in zip(example["masks"], example["boxes"], resized, strict=False):
        same = np.unpackbits(mask, axis=-1) == crop_mask(whole, found, 112)
        assert same.mean() > 0.85  # edges of small objects: masks are resized there, and sampled here


@pytest.mark.parametrize("name", dense_golden.names("resize_sizes__coco*"))
def test_sizes_are_those_of_mmcv(name):
    case = dense_golden.load(name)
    (sizes,) = (value for key, value in case.inputs.items() if value.ndim == 2)
    (expected,) = (value for key, value in case.outputs.items() if value.ndim == 2)
    for size, wanted in zip(sizes.tolist(), expected.tolist(), strict=True):
        assert list(fit_size(tuple(size[::-1]), (800, 1333)))[::-1] == wanted
