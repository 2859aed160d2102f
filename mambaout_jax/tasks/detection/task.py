"""Object detection and instance segmentation: a label is a set of boxes with classes and masks."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Float, Key, UInt8

from mambaout_jax.checks import ConfigKey
from mambaout_jax.data import DataError
from mambaout_jax.data.arguments import check_size_and_channels
from mambaout_jax.data.coco_categories import COCO_CATEGORIES
from mambaout_jax.data.names import COCO
from mambaout_jax.models import Model
from mambaout_jax.models.heads.mask_rcnn import DetectionLimits
from mambaout_jax.models.heads.rpn import ProposalLimits
from mambaout_jax.tasks.api import (
    Batch,
    EvalOutput,
    ImportedLabels,
    Labels,
    LossTerm,
    Metric,
    Scores,
    ScoreText,
    Section,
    TaskConfig,
)
from mambaout_jax.tasks.dense_task import DenseTask, KnownDataset
from mambaout_jax.tasks.detection import report
from mambaout_jax.tasks.detection.evaluation import (
    ImageDetections,
    average_precision,
    detect,
    to_image,
)
from mambaout_jax.tasks.detection.objects import encode_segmentation, mask_tools
from mambaout_jax.tasks.detection.predictor import DetectionPredictor
from mambaout_jax.tasks.detection.source import DetectionSource, open_source
from mambaout_jax.tasks.detection.targets import SampleSizes
from mambaout_jax.tasks.detection.training import training_losses
from mambaout_jax.tasks.detection.transforms import EvalExample, ImageTransform, OrientedCanvases, TrainExample
from mambaout_jax.tasks.errors import TaskError
from mambaout_jax.words import count

# The largest number of records that the baseline reads.
MAX_BASELINE_RECORDS = 200

_KEYS: Mapping[str, ConfigKey] = {
    "data.box": ConfigKey(
        tuple[int, int],
        "32..16384",
        (800, 1333),
        "mmdetection's `scale`: limits for the shorter and the longer side, in pixels; images are resized to fit, "
        "keeping their aspect ratio",
    ),
    "data.hflip_prob": ConfigKey(float, "0..1", 0.5, "probability of a horizontal flip"),
    "data.multi_scale": ConfigKey(
        bool,
        None,
        False,
        "multi-scale training: a random shorter side from 480 to 800 px, half of the time after a random crop, as in "
        'the "3x" recipes',
    ),
    "data.max_objects": ConfigKey(
        int, "1..1000", 100, "maximum number of objects per training image; the largest ones are used"
    ),
    "loss.pre_nms_top_k": ConfigKey(
        int, "1..100000", 2000, "number of top-scoring anchors per level before NMS, in training"
    ),
    "loss.max_proposals": ConfigKey(int, "1..100000", 1000, "largest number of proposals of a training image"),
    "loss.rpn_samples": ConfigKey(int, "2..100000", 256, "anchors sampled per image, at most half of them positive"),
    "loss.roi_samples": ConfigKey(
        int, "4..100000", 512, "proposals sampled per image, at most a quarter of them positive"
    ),
    "eval.pre_nms_top_k": ConfigKey(
        int,
        "1..100000",
        1000,
        "number of top-scoring anchors per level before NMS, in evaluation",
        changeable=True,
    ),
    "eval.max_proposals": ConfigKey(
        int, "1..100000", 1000, "largest number of proposals of an evaluated image", changeable=True
    ),
    "eval.score_threshold": ConfigKey(
        float, "0..1", 0.05, "score threshold: detections at or below it are dropped", changeable=True
    ),
    "eval.iou_threshold": ConfigKey(
        float,
        "0..1",
        0.5,
        "IoU above which the NMS of a class removes the detection with the lower score",
        changeable=True,
    ),
}


@dataclasses.dataclass(frozen=True)
class Detection(DenseTask):
    """Object detection and instance segmentation by Mask R-CNN.

    Labels also have "category_ids", the ids of the classes in annotation files.

    Args:
        config: the plain values of the config.
    """

    config: TaskConfig

    name: ClassVar[str] = "detection"
    # The images of train2017 with objects to train on.
    known_dataset: ClassVar[KnownDataset] = KnownDataset(COCO, 117_266, 80)
    expected_model: ClassVar[str] = "a detector, for example mask_rcnn_mambaout_tiny"
    keys: ClassVar[Mapping[str, ConfigKey]] = _KEYS
    inference_keys: ClassVar[tuple[str, ...]] = ("data.box", *(name for name in _KEYS if name.startswith("eval.")))
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("box_ap", "box AP", "%"),
        Metric("box_ap50", "box AP50", "%"),
        Metric("box_ap75", "box AP75", "%"),
        Metric("mask_ap", "mask AP", "%"),
        Metric("mask_ap50", "mask AP50", "%"),
        Metric("mask_ap75", "mask AP75", "%"),
    )
    loss_terms: ClassVar[tuple[str, ...]] = ("rpn_class", "rpn_box", "class", "box", "mask")
    scores_from_rows: ClassVar[bool] = True

    @classmethod
    def from_config(cls, config: TaskConfig) -> Self:
        """Build the task."""
        return cls(config)

    def check(self) -> None:
        """Check that the options fit together, and that pycocotools is installed."""
        mask_tools("the task detection")
        super().check()

    def open_source(self, split: str) -> DetectionSource:
        """Open a split of the dataset."""
        return open_source(self.config.dataset, split, self.config.data_dir)

    def imported_labels(self, model: Model, labels: Labels) -> ImportedLabels:
        """Return the names and category ids of imported weights; COCO's if there are 80 classes without names."""
        names = labels.get("class_names")
        if names is not None or model.num_classes != len(COCO_CATEGORIES):
            return super().imported_labels(model, labels)
        ids, names = zip(*COCO_CATEGORIES.items(), strict=True)
        imported = super().imported_labels(model, {**labels, "class_names": names, "category_ids": list(ids)})
        remark = f"No class names for the {count(len(ids), 'class')} in the weights; assuming those of COCO."
        return imported._replace(dataset=COCO, remark=remark)

    def train_transform(self, model: Model, source: DetectionSource | None = None) -> TrainExample:
        """Return the resizing and the random flip of an image, with its objects."""
        options = self.config.options
        return TrainExample(
            self._images(model, source),
            options["data.max_objects"],
            options["data.hflip_prob"],
            options["data.multi_scale"],
        )

    def eval_transform(self, model: Model, source: DetectionSource | None = None) -> EvalExample:
        """Return the transform of an image to its canvas."""
        return EvalExample(self._images(model, source))

    def decode(self, model: Model, source: DetectionSource, index: int) -> UInt8[np.ndarray, "h w c"]:
        """Decode the image of a record."""
        return self._images(model, source).decode(source[index].image)

    def _images(self, model: Model, source: DetectionSource | None) -> ImageTransform:
        check_size_and_channels(model.input_spec.size, model.in_chans)
        exif_orientation = source is not None and source.exif_orientation
        return ImageTransform(
            model.in_chans, exif_orientation, self._canvases(model, None if source is None else source.size)
        )

    def _canvases(self, model: Model, size: tuple[int, int] | None) -> OrientedCanvases:
        """Return the canvases of images of one (height, width), or of any size if it is None."""
        box = self.config.options["data.box"]
        if "img_size" in model.options:  # position embeddings have one size
            return OrientedCanvases(box, (model.input_spec.size,))
        return OrientedCanvases.of_images(size, box)

    @staticmethod
    def fits(model: Model) -> bool:
        """Return whether a model has the stages of Mask R-CNN."""
        return all(map(model.has_method, ("levels", "score_anchors", "classify", "segment", "detect")))

    def train_loss(
        self, model: Model, variables: dict[str, Any], batch: Batch, key: Key[Array, ""]
    ) -> tuple[dict[str, LossTerm], Any]:
        """Compute the losses of both stages, with random samples of anchors and proposals."""
        options = self.config.options
        rpn_samples, roi_samples = options["loss.rpn_samples"], options["loss.roi_samples"]
        return training_losses(
            model,
            variables,
            batch,
            key,
            limits=ProposalLimits(options["loss.pre_nms_top_k"], options["loss.max_proposals"]),
            rpn_samples=SampleSizes(rpn_samples, rpn_samples // 2),
            roi_samples=SampleSizes(roi_samples, roi_samples // 4),
        )

    def exported_outputs(
        self, model: Model, variables: dict[str, Any], images: Float[Array, "b h w c"]
    ) -> dict[str, Array]:
        """Find the objects of images that fill their canvas: the fields of `Detections`, with zeros as padding."""
        found = model.call(variables, "detect", images, None, self.limits)[0]._asdict()
        valid = found.pop("valid")
        return {"valid": valid} | {
            name: jnp.where(valid.reshape(*valid.shape, *(1,) * (x.ndim - 2)), x, jnp.zeros_like(x))
            for name, x in found.items()
        }

    def align_outputs(
        self, outputs: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]
    ) -> Mapping[str, np.ndarray]:
        """Return the detections of a program, each at the place of the nearest expected one of its class."""
        orders = [
            _nearest(*({name: x[row] for name, x in side.items()} for side in (outputs, expected)))
            for row in range(len(expected["valid"]))
        ]
        return {
            name: np.stack([of_image[order] for of_image, order in zip(x, orders, strict=True)])
            for name, x in outputs.items()
        }

    @property
    def limits(self) -> DetectionLimits:
        """Return which boxes of an evaluated image are detections."""
        options = self.config.options
        return DetectionLimits(
            ProposalLimits(options["eval.pre_nms_top_k"], options["eval.max_proposals"]),
            options["eval.score_threshold"],
            options["eval.iou_threshold"],
        )

    def evaluate_batch(self, model: Model, variables: dict[str, Any], batch: Batch, context: Any) -> EvalOutput:
        """Find the objects of a batch."""
        canvases = self._canvases_of(model, batch)
        found = detect(model, variables, batch, canvases, self.limits)
        rows = {"found": found._asdict(), "size": batch["size"], "original": batch["original"]}
        return EvalOutput({"count": batch["mask"].sum()}, rows)

    def _canvases_of(self, model: Model, batch: Batch) -> Sequence[tuple[int, int]]:
        image = batch["image"]
        if image.ndim == 4:
            return [image.shape[1:3]]
        return OrientedCanvases.of_images(None, self.config.options["data.box"]).sizes

    def collect(self, rows: dict[str, Any], index: np.ndarray) -> list[tuple[int, ImageDetections, tuple[int, int]]]:
        """Return index, detections and original size of each image."""
        return [
            (
                int(number),
                to_image({name: value[row] for name, value in rows["found"].items()}, rows["size"][row], original),
                tuple(original.tolist()),
            )
            for row, (number, original) in enumerate(zip(index, rows["original"], strict=True))
        ]

    def score(self, totals: Mapping[str, Any], collected: list[Any], source: DetectionSource) -> Scores:
        """Compute COCO's twelve numbers for boxes and for masks, and the number of scored images.

        Raises:
            TaskError: no image has an object that is not a crowd.
        """
        objects = source.all_objects
        if all(each.crowd.all() for each in objects.values()):
            raise TaskError(
                f"the split {source.split!r} of {source.name} has no objects to score; evaluate another split"
            )
        ids = list(objects)
        found = {ids[index]: detections for part in collected for index, detections, _ in part}
        return {**average_precision(objects, found), "count": int(totals["count"])}

    def join_predictions(self, collected: list[Any]) -> dict[str, np.ndarray]:
        """Return the detections of all images, one after the other, in the order of the source."""
        return report.join_detections([entry for part in collected for entry in part])

    def baseline_score(self, source: DetectionSource) -> float:
        """Compute the box AP of always predicting the mean box, with the most frequent class.

        Raises:
            TaskError: none of the records has an object.
        """
        indices = np.linspace(0, len(source) - 1, min(len(source), MAX_BASELINE_RECORDS)).astype(int)
        objects, failure = {}, None
        for index in indices.tolist():
            try:
                objects[index] = source[index].objects
            except DataError as error:  # unreadable records are handled in training, by config.data.on_bad_record
                failure = error
        parts = [
            (each.boxes[each.trainable] / np.array(each.size)[[1, 0, 1, 0]], each.classes[each.trainable])
            for each in objects.values()
        ]
        boxes, classes = (np.concatenate(part) for part in zip(*parts, strict=True)) if parts else ((), ())
        if not len(boxes):
            why = "" if failure is None else f" ({failure})"
            raise TaskError(
                f"none of {count(len(indices), 'training record')} has an object{why}; check config.data.train_split "
                "and the annotations"
            )
        mean, common = boxes.mean(0), np.bincount(classes).argmax()
        found = {}
        for index, each in objects.items():
            box = mean * np.array(each.size)[[1, 0, 1, 0]]
            mask = encode_segmentation(None, each.size, box)
            found[index] = ImageDetections(box[None], np.ones(1), np.array([common]), [mask])
        return average_precision(objects, found)["box_ap"]

    def describe_evaluation(self, model: Model, source: DetectionSource) -> dict[str, Any]:
        """Return the sizes and the limits of the evaluation."""
        options = self.config.options
        return {name.partition(".")[2]: options[name] for name in self.inference_keys} | {
            "num_classes": model.num_classes,
            "sampling_ratio": model.options["sampling_ratio"],
        }

    @staticmethod
    def describe_input(record: Mapping[str, Any]) -> str:
        """Return the size of images."""
        short, long = record["box"]
        return f"within {long}x{short}"

    @staticmethod
    def score_text(scores: Mapping[str, Any], split: str) -> ScoreText:
        """Return the scores as text."""
        return report.score_text(scores, split)

    def predictor(self, model: Model, labels: Labels) -> DetectionPredictor:
        """Return the predictor of image files."""
        images = ImageTransform(model.in_chans, labels.get("exif_orientation", True), self._canvases(model, None))
        return DetectionPredictor(model, images, labels, self.limits)

    def report_sections(self, workdir: epath.Path, labels: Labels, split: str) -> list[Section]:
        """Return precision and recall, the AP of each class, and a gallery of predictions."""
        return report.sections(workdir, labels, lambda: self.open_source(split))


def _nearest(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the index of the found detection that belongs to each expected one, each index once."""
    distance = np.abs(found["boxes"][None] - expected["boxes"][:, None]).max(-1)
    same = (found["classes"][None] == expected["classes"][:, None]) & (
        found["valid"][None] == expected["valid"][:, None]
    )
    distance = np.where(same, distance, np.inf)
    order = np.arange(len(distance))
    for row in range(len(order)):
        order[row] = distance[row].argmin()
        distance[:, order[row]] = np.inf
    # Without a counterpart of their own, detections differ in any order.
    return order if len(set(order.tolist())) == len(order) else np.arange(len(order))
