"""Semantic segmentation: a label is a class for each pixel."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Float, Key, UInt8

from mambaout_jax.checks import ConfigKey
from mambaout_jax.data import DataError
from mambaout_jax.data.arguments import check_size_and_channels
from mambaout_jax.data.label_maps import IGNORED, decode_label_map
from mambaout_jax.data.names import ADE20K
from mambaout_jax.models import Model
from mambaout_jax.ops import resize_bilinear
from mambaout_jax.tasks.api import (
    Batch,
    EvalOutput,
    Labels,
    LossTerm,
    Metric,
    Scores,
    ScoreText,
    Section,
    TaskConfig,
)
from mambaout_jax.tasks.dense_task import DenseTask, KnownDataset
from mambaout_jax.tasks.errors import TaskError
from mambaout_jax.tasks.segmentation import report
from mambaout_jax.tasks.segmentation.canvases import EvalSizes
from mambaout_jax.tasks.segmentation.drawing import make_palette
from mambaout_jax.tasks.segmentation.evaluation import Windows, segment
from mambaout_jax.tasks.segmentation.losses import pixel_cross_entropy
from mambaout_jax.tasks.segmentation.metrics import Areas, count_areas, join_sums, sum_areas, summarize
from mambaout_jax.tasks.segmentation.predictor import SegmentationPredictor
from mambaout_jax.tasks.segmentation.source import SegmentationSource, open_source
from mambaout_jax.tasks.segmentation.transforms import Decoder, EvalExample, TrainExample
from mambaout_jax.words import count

# The largest number of records that the majority baseline reads.
MAX_BASELINE_RECORDS = 500

_DATA_KEYS: Mapping[str, ConfigKey] = {
    "data.box": ConfigKey(
        tuple[int, int],
        "32..16384",
        (512, 2048),
        "mmsegmentation's `scale`: limits for the shorter and the longer side, in pixels; images are resized to fit, "
        "keeping their aspect ratio",
    ),
    "data.box_scale": ConfigKey(
        tuple[float, float], ">0..16", (0.5, 2.0), "smallest and largest factor of data.box in training"
    ),
    "data.cat_max_ratio": ConfigKey(
        float,
        ">0..1",
        0.75,
        "largest share of one class in a training crop, which is redrawn at most 10 times; 1 for no limit",
    ),
    "data.hflip_prob": ConfigKey(float, "0..1", 0.5, "probability of a horizontal flip"),
    "data.photometric": ConfigKey(
        bool,
        None,
        True,
        "change brightness, contrast, saturation and hue of training images, each with probability 1/2",
    ),
}
_EVAL_KEYS: Mapping[str, ConfigKey] = {
    "eval.window": ConfigKey(
        int | None,
        "32..16384",
        None,
        "crop size of sliding-window inference, in pixels; whole images if unset",
        changeable=True,
    ),
    "eval.stride": ConfigKey(
        int | None,
        "1..16384",
        None,
        "stride of the sliding window, in pixels, at most eval.window; two thirds of the window if unset",
        changeable=True,
    ),
    "eval.scales": ConfigKey(
        tuple[float, ...], ">0..16", (1.0,), "scales whose predictions are averaged", changeable=True
    ),
    "eval.flip": ConfigKey(bool, None, False, "average with the predictions for flipped images", changeable=True),
    "eval.scale_of": ConfigKey(
        str,
        ("box", "image"),
        "box",
        "what eval.scales are factors of: data.box (mmsegmentation 0.x), or the original image (mmsegmentation 1.x)",
        changeable=True,
    ),
}
_LOSS_KEYS: Mapping[str, ConfigKey] = {
    "loss.auxiliary": ConfigKey(float, "0..", 0.4, "weight of the loss of the auxiliary head"),
}


@dataclasses.dataclass(frozen=True)
class Segmentation(DenseTask):
    """Semantic segmentation by a model with a head such as UperNet.

    Pixels with the label 255 are ignored.

    Args:
        config: the plain values of the config.
    """

    config: TaskConfig

    name: ClassVar[str] = "segmentation"
    # ADEChallengeData2016
    known_dataset: ClassVar[KnownDataset] = KnownDataset(ADE20K, 20_210, 150)
    expected_model: ClassVar[str] = "a segmentation model, for example upernet_mambaout_tiny"
    keys: ClassVar[Mapping[str, ConfigKey]] = {**_DATA_KEYS, **_EVAL_KEYS, **_LOSS_KEYS}
    inference_keys: ClassVar[tuple[str, ...]] = ("data.box", *_EVAL_KEYS)
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("miou", "mIoU", "%"),
        Metric("macc", "mAcc", "%"),
        Metric("aacc", "aAcc", "%"),
    )
    loss_terms: ClassVar[tuple[str, ...]] = ("decode", "auxiliary")

    @classmethod
    def from_config(cls, config: TaskConfig) -> Self:
        """Build the task.

        Raises:
            TaskError: the stride of the windows exceeds their side.
        """
        task = cls(config)
        task._windows()
        return task

    def open_source(self, split: str) -> SegmentationSource:
        """Open a split of the dataset."""
        return open_source(self.config.dataset, split, self.config.data_dir)

    def train_transform(self, model: Model, source: SegmentationSource | None = None) -> TrainExample:
        """Return the random resizing, crop, flip and change of colors of an image, with its label map."""
        options = self.config.options
        return TrainExample(
            decoder=self._decoder(model, source),
            size=model.input_spec.size,
            box=options["data.box"],
            ratio=options["data.box_scale"],
            cat_max_ratio=options["data.cat_max_ratio"],
            flip=options["data.hflip_prob"],
            photometric=options["data.photometric"] and model.in_chans == 3,
        )

    def eval_transform(self, model: Model, source: SegmentationSource | None = None) -> EvalExample:
        """Return the transform of an image to its canvases, with its label map at the original size."""
        size = model.input_spec.size
        sizes = self._eval_sizes(model)
        canvases = sizes.canvases(size, size) if source is None else sizes.canvases(source.size, source.max_size)
        return EvalExample(self._decoder(model, source), sizes, canvases)

    def decode(self, model: Model, source: SegmentationSource, index: int) -> UInt8[np.ndarray, "h w c"]:
        """Decode the image of a record."""
        return self._decoder(model, source).image(source[index]["image"])

    def _eval_sizes(self, model: Model) -> EvalSizes:
        options = self.config.options
        fixed = model.input_spec.size if "img_size" in model.options else None
        return EvalSizes(
            options["data.box"], options["eval.scales"], options["eval.scale_of"], options["eval.window"], fixed
        )

    def _windows(self) -> Windows | None:
        side, stride = (self.config.options[f"eval.{name}"] for name in ("window", "stride"))
        return None if side is None else Windows(side, stride or side * 2 // 3)

    def _decoder(self, model: Model, source: SegmentationSource | None) -> Decoder:
        check_size_and_channels(model.input_spec.size, model.in_chans)
        return Decoder(model.in_chans, model.num_classes, source is not None and source.exif_orientation)

    @staticmethod
    def fits(model: Model) -> bool:
        """Return whether a model has a decode head and an auxiliary head."""
        return model.has_method("logits_with_auxiliary")

    def train_loss(
        self, model: Model, variables: dict[str, Any], batch: Batch, key: Key[Array, ""]
    ) -> tuple[dict[str, LossTerm], Any]:
        """Compute the mean cross-entropy over all pixels, ignored ones included, of both heads.

        mmsegmentation divides by all pixels by default (`avg_non_ignore=False`).
        """
        logits, batch_stats = model.call(variables, "logits_with_auxiliary", batch["image"], key, train=True)
        weights = 1.0, self.config.options["loss.auxiliary"]
        return {
            name: LossTerm(weight * pixel_cross_entropy(of_head, batch["label"]).sum(), batch["label"].size)
            for name, weight, of_head in zip(self.loss_terms, weights, logits, strict=True)
        }, batch_stats

    def exported_outputs(
        self, model: Model, variables: dict[str, Any], images: Float[Array, "b h w c"]
    ) -> dict[str, Array]:
        """Compute the logits of all pixels."""
        return {"logits": resize_bilinear(model.apply(variables, images), images.shape[1:3])}

    def class_colors(self, class_names: Sequence[str]) -> list[str]:
        """Return the colors of overlays."""
        return [f"#{bytes(color).hex()}" for color in make_palette(class_names)[: len(class_names)]]

    def evaluate_batch(self, model: Model, variables: dict[str, Any], batch: Batch, context: Any) -> EvalOutput:
        """Count the pixels of each class at the original size."""
        canvases = self._eval_sizes(model).canvases_of(batch)
        predicted = segment(
            model, variables, batch, canvases, flip=self.config.options["eval.flip"], windows=self._windows()
        )
        areas = jax.vmap(lambda *maps: count_areas(*maps, model.num_classes))(predicted, batch["label"])
        areas = Areas(*(jnp.where(batch["mask"][:, None], area, 0) for area in areas))
        totals = {name: sum_areas(area) for name, area in areas._asdict().items()}
        return EvalOutput(
            {**totals, "count": batch["mask"].sum()},
            {"areas": areas._asdict(), "map": report.shrink(predicted, batch["original"])},
        )

    def collect(self, rows: dict[str, Any], index: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return index, pixels of each class and the reduced label map of each image."""
        return index, np.stack([rows["areas"][name] for name in Areas._fields], axis=1), rows["map"]

    def score(self, totals: Mapping[str, Any], collected: list[Any], source: SegmentationSource) -> Scores:
        """Compute mIoU, mAcc and aAcc in percent, and the number of scored images.

        Raises:
            TaskError: there are no labeled pixels.
        """
        areas = Areas(*(join_sums(totals[name]) for name in Areas._fields))
        if not areas.labeled.any():
            raise TaskError(
                f"the split {source.split!r} of {source.name} has no labeled pixels to score; evaluate another split, "
                f"or prepare label maps with labels other than {IGNORED}"
            )
        return {**summarize(areas), "count": int(totals["count"])}

    def join_predictions(self, collected: list[tuple[np.ndarray, ...]]) -> dict[str, np.ndarray]:
        """Return the pixels of each class (n, 3, k) and the reduced label maps (n, h, w), in the source's order."""
        index, areas, maps = (np.concatenate(parts) for parts in zip(*collected, strict=True))
        order = np.argsort(index, kind="stable")
        return {"areas": areas[order], "maps": maps[order]}

    def baseline_score(self, source: SegmentationSource) -> float:
        """Compute the mIoU of always predicting the most frequent class, from evenly spaced records.

        Raises:
            TaskError: none of these records can be read and has a labeled pixel.
        """
        indices = np.linspace(0, len(source) - 1, min(len(source), MAX_BASELINE_RECORDS)).astype(int)
        labeled, failure = np.zeros(IGNORED + 1, np.int64), None
        for index in indices.tolist():
            try:
                labeled += np.bincount(decode_label_map(source[index]["label_map"]).ravel(), minlength=IGNORED + 1)
            except DataError as error:  # unreadable records are handled in training, by config.data.on_bad_record
                failure = error
        labeled = labeled[:IGNORED]
        if not labeled.any():
            because = "" if failure is None else f" ({failure})"
            raise TaskError(
                f"none of {count(len(indices), 'training record')} has a labeled pixel{because}; check the label maps "
                "of config.data.train_split"
            )
        return 100 * float(labeled.max() / labeled.sum()) / int(np.count_nonzero(labeled))

    def describe_evaluation(self, model: Model, source: SegmentationSource) -> dict[str, Any]:
        """Return the sizes, the windows and the scales of the evaluation."""
        options = self.config.options
        names = ("data.box", "eval.window", "eval.scales", "eval.scale_of", "eval.flip")
        windows = self._windows()
        return {name.partition(".")[2]: options[name] for name in names} | {
            "stride": None if windows is None else windows.stride,
            "num_classes": model.num_classes,
            "batch_norm": "running statistics of the training batches; those of the averaged weights are averaged too",
        }

    @staticmethod
    def describe_input(record: Mapping[str, Any]) -> str:
        """Return the size of images, and windows and scales if there are several."""
        short, long = record["box"]
        words = [f"within {long}x{short}" if record["scale_of"] == "box" else "original size"]
        if record["window"] is not None:
            words.append(f"windows of {record['window']} every {record['stride']}")
        if len(record["scales"]) > 1 or record["flip"]:
            words.append(f"scales {', '.join(map(str, record['scales']))}{', flipped' if record['flip'] else ''}")
        return ", ".join(words)

    @staticmethod
    def score_text(scores: Mapping[str, Any], split: str) -> ScoreText:
        """Return the scores as text."""
        return report.score_text(scores, split)

    def predictor(self, model: Model, labels: Labels) -> SegmentationPredictor:
        """Return the predictor of image files."""
        options = self.config.options
        return SegmentationPredictor(
            model,
            self._eval_sizes(model),
            labels,
            flip=options["eval.flip"],
            windows=self._windows(),
        )

    def report_sections(self, workdir: epath.Path, labels: Labels, split: str) -> list[Section]:
        """Return the IoU of each class and a gallery of predictions, worst ones first."""
        return report.sections(workdir, labels, lambda: self.open_source(split))
