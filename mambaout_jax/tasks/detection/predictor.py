"""Detection of objects in image files."""

import json
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np

from mambaout_jax.models import Model, cpu_compiler_options
from mambaout_jax.models.heads.mask_rcnn import DetectionLimits
from mambaout_jax.tasks.api import Batch, Example, Labels
from mambaout_jax.tasks.detection.drawing import draw_objects
from mambaout_jax.tasks.detection.evaluation import ImageDetections, detect, to_image
from mambaout_jax.tasks.detection.objects import decode_masks
from mambaout_jax.tasks.detection.transforms import EvalExample, ImageTransform
from mambaout_jax.tasks.labels import class_name
from mambaout_jax.tasks.pictures import encode_picture


class FoundObjects(NamedTuple):
    """The objects that a model finds in one image.

    Args:
        found: at the original size, best first.
        names: class names, or none.
        category_ids: ids of the classes in annotation files.
        images: decodes the image.
    """

    found: ImageDetections
    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    images: ImageTransform

    def to_json(self, limit: int | None = None) -> list[dict[str, Any]]:
        """Return class, score and box (x1, y1, x2, y2) of the `limit` best detections."""
        rows = zip(self.found.classes.tolist(), self.found.scores.tolist(), self.found.boxes.tolist(), strict=True)
        return [
            {
                "class": class_name(self.names, kind),
                "index": kind,
                "score": score,
                "box": [round(value, 2) for value in box],
            }
            for kind, score, box in list(rows)[:limit]
        ]

    def describe(self, limit: int | None = None) -> list[str]:
        """Return a line for each of the `limit` best detections."""
        if not len(self.found.scores):
            return ["no object found"]
        return [
            f"{100 * entry['score']:5.1f} %  {entry['class']}  at {', '.join(f'{value:.0f}' for value in entry['box'])}"
            for entry in self.to_json(limit)
        ]

    def files(self, image: bytes) -> dict[str, bytes]:
        """Return a picture of the detections, and all of them as COCO's results, by ending of the name."""
        shown = self.found.shown
        labels = [
            f"{class_name(self.names, kind)} {100 * score:.0f} %"
            for kind, score in zip(shown.classes, shown.scores, strict=True)
        ]
        image = self.images.decode(image)
        picture = draw_objects(image, shown.boxes, shown.classes, labels, decode_masks(shown.masks))
        content = json.dumps(coco_results(self.found, self.category_ids), indent=2) + "\n"
        return {"_objects.jpg": encode_picture(picture), "_objects.json": content.encode()}


def coco_results(found: ImageDetections, category_ids: tuple[int, ...]) -> list[dict[str, Any]]:
    """Return detections as entries of a file of COCO results, without "image_id"."""
    return [
        {
            "category_id": category_ids[kind],
            "bbox": [round(float(value), 2) for value in (x1, y1, x2 - x1, y2 - y1)],
            "score": round(float(score), 5),
            "segmentation": {"size": [int(side) for side in mask["size"]], "counts": mask["counts"].decode()},
        }
        for (x1, y1, x2, y2), kind, score, mask in zip(
            found.boxes, found.classes.tolist(), found.scores, found.masks, strict=True
        )
    ]


class DetectionPredictor:
    """A model with its image transform."""

    def __init__(self, model: Model, images: ImageTransform, labels: Labels, limits: DetectionLimits):
        self._model, self._limits = model, limits
        self._transform = EvalExample(images)
        self._names = tuple(labels.get("class_names") or ())
        self._category_ids = tuple(labels.get("category_ids") or range(1, model.num_classes + 1))

    @cached_property
    def _detect(self) -> Any:
        canvases = self._transform.images.canvases.sizes

        def run(variables, batch):
            return detect(self._model, variables, batch, canvases, self._limits)

        return jax.jit(run, compiler_options=cpu_compiler_options())

    def prepare(self, image: bytes) -> Example:
        """Decode and resize an image.

        Raises:
            DataError: the image cannot be decoded.
        """
        return self._transform.of_image(self._transform.images.decode(image))

    def empty(self) -> Example:
        """Return an example without any pixel."""
        return self._transform.empty()

    def __call__(self, variables: dict[str, Any], batch: Batch) -> list[FoundObjects | str]:
        """Find the objects of a batch."""
        found = jax.tree.map(np.asarray, self._detect(variables, batch))._asdict()
        return [
            FoundObjects(
                to_image({name: value[row] for name, value in found.items()}, batch["size"][row], original),
                self._names,
                self._category_ids,
                self._transform.images,
            )
            for row, original in enumerate(batch["original"])
        ]
