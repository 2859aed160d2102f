"""Detections at the original size of images, and their average precision."""

import contextlib
import importlib
import io
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax

from mambaout_jax.extras import importing
from mambaout_jax.models import Model
from mambaout_jax.models.heads.mask_rcnn import DetectionLimits, Detections
from mambaout_jax.ops.images import blank_outside
from mambaout_jax.ops.sharding import map_rows
from mambaout_jax.tasks.api import Batch
from mambaout_jax.tasks.detection.objects import MaskPaster, Objects, mask_tools
from mambaout_jax.tasks.images import Size

# The twelve numbers of COCO, for boxes and for masks, in the order of pycocotools' `COCOeval.stats`.
STATISTICS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
              "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")  # fmt: skip
SHOWN_SCORE = 0.5
KINDS = {"box": "bbox", "mask": "segm"}


class ImageDetections(NamedTuple):
    """The detections of one image, in the order of descending scores.

    Args:
        boxes: (x1, y1, x2, y2) in pixels of the original image, float32 (n, 4).
        scores: float32 (n,).
        classes: int32 (n,).
        masks: run-length encodings with compressed counts.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    masks: list[dict[str, Any]]

    @property
    def shown(self) -> "ImageDetections":
        """The detections that pictures show, and whose errors the gallery counts: scores of at least `SHOWN_SCORE`."""
        keep = self.scores >= SHOWN_SCORE
        masks = [mask for mask, kept in zip(self.masks, keep, strict=True) if kept]
        return ImageDetections(self.boxes[keep], self.scores[keep], self.classes[keep], masks)


def detect(
    model: Model, variables: dict[str, Any], batch: Batch, canvases: Sequence[Size], limits: DetectionLimits
) -> Detections:
    """Find the objects of a batch of examples of `transforms.EvalExample`."""

    def run(canvas, variables, image, size):
        image = image.reshape(len(image), *canvas, model.in_chans)
        image = blank_outside(model.input_spec.normalize(image), size)
        return model.call(variables, "detect", image, size, limits)[0]

    if len(canvases) == 1:
        return run(canvases[0], variables, batch["image"], batch["size"])

    def one_by_one(image, size, canvas, variables):
        branches = [partial(run, shape) for shape in canvases]

        def of_row(row):
            image, size, canvas = row
            found = lax.switch(canvas, branches, variables, image[None], size[None])
            return jax.tree.map(lambda x: x[0], found)

        return lax.map(of_row, (image, size, canvas))

    return map_rows(one_by_one, batch["image"], batch["size"], batch["canvas"], replicated=(variables,))


def to_image(found: Mapping[str, np.ndarray], size: np.ndarray, original: np.ndarray) -> ImageDetections:
    """Return the detections of one image at its original size.

    Args:
        found: the fields of `Detections` without the axis of the batch.
        size: (height, width) in the canvas.
        original: (height, width).
    """
    mask = mask_tools()
    valid = found["valid"]
    boxes = found["boxes"][valid] * (original / np.maximum(size, 1))[[1, 0, 1, 0]].astype(np.float32)
    paster = MaskPaster(tuple(original.tolist()))
    encoded = [
        mask.encode(paster.paste(logits, box)) for logits, box in zip(found["mask_logits"][valid], boxes, strict=True)
    ]
    return ImageDetections(boxes, found["scores"][valid], found["classes"][valid], encoded)


def average_precision(objects: Mapping[int, Objects], found: Mapping[int, ImageDetections]) -> dict[str, float]:
    """Compute COCO's twelve numbers for boxes and for masks, in percent, as "box_ap" and so on; -1 without objects.

    Args:
        objects: of every image, by id.
        found: detections of the images that were evaluated; others are left out.
    """
    return {
        f"{kind}_{name}": value
        for kind, evaluation in run_cocoeval(objects, found).items()
        for name, value in statistics_of(evaluation).items()
    }


def statistics_of(evaluation: Any) -> dict[str, float]:
    """Return the twelve numbers of a `COCOeval`, in percent; -1 for those of sizes without objects."""
    values = np.asarray(evaluation.stats)[: len(STATISTICS)]
    values = np.where(values < 0, values, 100 * values)
    return {name: float(value) for name, value in zip(STATISTICS, values, strict=True)}


def run_cocoeval(objects: Mapping[int, Objects], found: Mapping[int, ImageDetections]) -> dict[str, Any]:
    """Compare detections with objects by COCO's evaluation.

    Args:
        objects, found: as of `average_precision`.

    Returns:
        The accumulated `COCOeval` of boxes and of masks.
    """
    COCO, COCOeval = _evaluation_tools()
    num_classes = 1 + max(
        (int(of_image.classes.max(initial=-1)) for of_image in (*objects.values(), *found.values())), default=0
    )
    truth, detected = COCO(), COCO()
    images = [{"id": key, "height": objects[key].size[0], "width": objects[key].size[1]} for key in found]
    categories = [{"id": index} for index in range(num_classes)]
    annotations = [entry for key in found for entry in _truths(key, objects[key])]
    results = [entry for key, of_image in found.items() for entry in _results(key, of_image)]
    evaluations = {}
    with contextlib.redirect_stdout(io.StringIO()):
        for coco, entries in ((truth, annotations), (detected, results)):
            numbered = [{**entry, "id": number} for number, entry in enumerate(entries, 1)]
            coco.dataset = {"images": images, "categories": categories, "annotations": numbered}
            coco.createIndex()
        for kind, iou_type in KINDS.items():
            for entry in detected.dataset["annotations"]:
                entry["area"] = entry["areas"][kind]
            evaluations[kind] = evaluation = COCOeval(truth, detected, iou_type)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
    return evaluations


def _evaluation_tools() -> tuple[type, type]:
    """Return `COCO` and `COCOeval`: those of faster-coco-eval, which computes the same, if it is installed."""
    with contextlib.suppress(ImportError):
        faster = importlib.import_module("faster_coco_eval")
        return faster.COCO, faster.COCOeval_faster
    with importing("coco", "COCO's metrics require pycocotools"):
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    return COCO, COCOeval


def _truths(image_id: int, objects: Objects) -> list[dict[str, Any]]:
    entries = []
    for index, (box, area) in enumerate(zip(objects.boxes, objects.areas, strict=True)):
        entries.append(
            {
                "image_id": image_id,
                "category_id": int(objects.classes[index]),
                "bbox": _to_xywh(box),
                "area": float(area),
                "iscrowd": int(objects.crowd[index]),
                "segmentation": objects.encoded(index),
            }
        )
    return entries


def _results(image_id: int, found: ImageDetections) -> list[dict[str, Any]]:
    mask = mask_tools()
    areas = mask.area(found.masks) if found.masks else []
    return [
        {
            "image_id": image_id,
            "category_id": int(kind),
            "bbox": (bbox := _to_xywh(box)),
            "score": float(score),
            "segmentation": encoded,
            # As `COCO.loadRes` computes them.
            "areas": {"box": bbox[2] * bbox[3], "mask": float(area)},
            "iscrowd": 0,
        }
        for box, score, kind, encoded, area in zip(
            found.boxes, found.scores, found.classes, found.masks, areas, strict=True
        )
    ]


def _to_xywh(box: np.ndarray) -> list[float]:
    x1, y1, x2, y2 = (float(value) for value in box)
    return [x1, y1, x2 - x1, y2 - y1]
