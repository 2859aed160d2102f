"""Image classification: a label is one class or, in some evaluation sets, several."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Key

from mambaout_jax.checks import ConfigKey
from mambaout_jax.data import DataError, TrainTransform
from mambaout_jax.data.eval_transform import CROP_MODES
from mambaout_jax.data.imagenet_classes import IMAGENET_SPLITS, imagenet_class_names
from mambaout_jax.data.names import IMAGENET
from mambaout_jax.models import Model
from mambaout_jax.tasks.api import (
    Batch,
    EmaDistillation,
    EvalOutput,
    ImportedLabels,
    Labels,
    LossTerm,
    Metric,
    RowGroup,
    Scores,
    ScoreText,
    Section,
    TaskConfig,
    TeacherSource,
)
from mambaout_jax.tasks.class_task import ClassTask
from mambaout_jax.tasks.classification import report
from mambaout_jax.tasks.classification.distillation import check_teacher, soft_targets
from mambaout_jax.tasks.classification.eval_sets import EVAL_SETS, class_mask, find_eval_set, open_eval_set
from mambaout_jax.tasks.classification.losses import cross_entropy, kl_divergence
from mambaout_jax.tasks.classification.metrics import hits_and_loss, top_classes
from mambaout_jax.tasks.classification.mixing import Augmentation, augment
from mambaout_jax.tasks.classification.predictor import ImagePredictor, classifies
from mambaout_jax.tasks.classification.source import ImageSource, open_source
from mambaout_jax.tasks.classification.transforms import EvalExample, TrainExample
from mambaout_jax.tasks.errors import TaskError
from mambaout_jax.tasks.eval_images import eval_image_transform, is_turned_upright
from mambaout_jax.words import count

# The largest number of records that the majority baseline reads.
MAX_LABELS = 2000

_DATA_KEYS: Mapping[str, ConfigKey] = {
    "data.eval_sets": ConfigKey(
        str | None,
        None,
        None,
        "test sets for --mode=evaluate, separated by commas: " + ", ".join(EVAL_SETS),
        changeable=True,
    ),
    "data.pipeline": ConfigKey(
        str,
        ("exact", "fast"),
        "exact",
        "exact: Pillow, with the same pixels as timm; fast: simplejpeg and OpenCV",
    ),
    "data.crop": ConfigKey(
        str,
        ("resize", "random_resized"),
        "random_resized",
        "what is resized to the model's input size in training: the whole image, or a random crop of it",
    ),
    "data.crop_scale": ConfigKey(
        tuple[float, float],
        "0..1",
        (0.08, 1.0),
        "smallest and largest area of a random crop, as a fraction of the image",
    ),
    "data.crop_ratio": ConfigKey(
        tuple[float, float], "0..", (3 / 4, 4 / 3), "smallest and largest aspect ratio (width / height) of a crop"
    ),
    "data.hflip_prob": ConfigKey(float, "0..1", 0.5, "probability of a horizontal flip"),
    "data.interpolation": ConfigKey(
        str, ("bilinear", "bicubic", "random"), "random", "interpolation for resizing training images"
    ),
    "data.auto_augment": ConfigKey(
        str | None, None, None, "RandAugment in timm's notation, such as rand-m9-mstd0.5-inc1; none if unset"
    ),
    "data.crop_pct": ConfigKey(
        float | None,
        "0.1..1",
        None,
        "evaluation crop, as a fraction of the resized side; the model's if unset",
    ),
    "data.crop_mode": ConfigKey(
        str | None, CROP_MODES, None, "how evaluation images are cropped; the model's if unset"
    ),
}
_AUGMENT_KEYS: Mapping[str, ConfigKey] = {
    "augment.pad": ConfigKey(int, "0..", 0, "zero padding in pixels before a random crop to the original size"),
    "augment.rotate_degrees": ConfigKey(float, "0..180", 0.0, "largest rotation in either direction, in degrees"),
    "augment.mixup_alpha": ConfigKey(
        float, "0..", 0.0, "mixup draws its mixing weight from Beta(alpha, alpha); 0 for no mixup"
    ),
    "augment.cutmix_alpha": ConfigKey(
        float, "0..", 0.0, "cutmix draws its mixing weight from Beta(alpha, alpha); 0 for no cutmix"
    ),
    "augment.mixup_prob": ConfigKey(float, "0..1", 1.0, "probability that a group of images is mixed"),
    "augment.mixup_switch_prob": ConfigKey(
        float, "0..1", 0.5, "probability of cutmix, if mixup and cutmix are both on"
    ),
    "augment.mixup_group": ConfigKey(
        int, "1..", 16, "number of consecutive images that are mixed with each other and share a mixing weight"
    ),
    "augment.random_erasing_prob": ConfigKey(
        float, "0..1", 0.0, "probability that a rectangle of an image is replaced by noise"
    ),
    "augment.label_smoothing": ConfigKey(
        float, "0..1", 0.1, "label smoothing: fraction of the target distributed evenly over all classes"
    ),
}
_LOSS_KEYS: Mapping[str, ConfigKey] = {
    "loss.mesa": ConfigKey(
        float,
        "0..",
        0.0,
        "weight of MESA: the KL divergence of the predictions from those of the EMA of the weights; 0 for none",
    ),
    "loss.mesa_start": ConfigKey(float, "0..1", 0.25, "fraction of the training after which MESA starts"),
    "loss.teacher": ConfigKey(
        str | None,
        None,
        None,
        "teacher whose predictions are targets too: the workdir of a run, or any other source of init_from, of any "
        "family; none if unset. When a run is resumed, the path may differ, but not the weights",
        changeable=True,
    ),
    "loss.teacher_weight": ConfigKey(
        float,
        "0..1",
        0.5,
        "weight of the KL divergence of the predictions from those of the teacher; that of the cross-entropy is 1 "
        "minus this weight",
    ),
    "loss.teacher_temperature": ConfigKey(
        float, ">0..", 1.0, "temperature by which the logits of student and teacher are divided in that KL divergence"
    ),
}


@dataclasses.dataclass(frozen=True)
class Classification(ClassTask):
    """Image classification with soft targets, mixup, cutmix and random erasing.

    Labels may have "exif_orientation", the rule of the dataset; imported weights may lack it.

    Args:
        config: the plain values of the config.
        mixup_group: number of images that share one draw and are mixed with each other.
    """

    config: TaskConfig
    mixup_group: int

    name: ClassVar[str] = "classification"
    expected_model: ClassVar[str] = "a classifier, for example mambaout_tiny, or another config.task"
    keys: ClassVar[Mapping[str, ConfigKey]] = {**_DATA_KEYS, **_AUGMENT_KEYS, **_LOSS_KEYS}
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("top1", "top-1", "%"),
        Metric("top5", "top-5", "%"),
        Metric("loss", "loss", digits=4, higher_is_better=False),
    )

    @classmethod
    def from_config(cls, config: TaskConfig) -> Self:
        """Build the task."""
        return cls(config, config.options["augment.mixup_group"])

    @property
    def loss_terms(self) -> tuple[str, ...]:
        """Return the names of the terms of the loss."""
        optional = {"teacher": self.teacher(), "mesa": self.distillation()}
        return ("cross_entropy", *(name for name, used in optional.items() if used))

    def open_source(self, split: str) -> ImageSource:
        """Open a split of the dataset."""
        return open_source(self.config.dataset, split, self.config.data_dir)

    def known_size(self, split: str) -> tuple[int, Labels] | None:
        """Return the size of ImageNet-1k's training split."""
        if split != "train" or self.config.dataset.partition(":")[0] != IMAGENET:
            return None
        return IMAGENET_SPLITS[split], {"class_names": list(imagenet_class_names())}

    def _eval_sets(self) -> list[str]:
        return list(filter(None, map(str.strip, (self.config.options["data.eval_sets"] or "").split(","))))

    def check(self) -> None:
        """Check the options of the model, the transforms, and the names of the test sets."""
        super().check()
        for name in self._eval_sets():
            find_eval_set(name)

    def open_eval_sources(self) -> list[ImageSource]:
        """Open the sets that `data.eval_sets` names."""
        return [open_eval_set(name, self.config.data_dir) for name in self._eval_sets()]

    def imported_labels(self, model: Model, labels: Labels) -> ImportedLabels:
        """Return the class names of imported weights; ImageNet's if there are 1,000 classes without names."""
        official, remark = imagenet_class_names(), ""
        if labels.get("class_names") is None and model.num_classes == len(official):
            labels = {**labels, "class_names": official}
            remark = f"No class names for the {count(model.num_classes, 'class')} in the weights; assuming ImageNet-1k."
        imported = super().imported_labels(model, labels)
        dataset = IMAGENET if tuple(labels.get("class_names") or ()) == official else None
        return imported._replace(dataset=dataset, remark=remark)

    def train_transform(self, model: Model, source: ImageSource | None = None) -> TrainExample:
        """Return the random crop and augmentation of an image at the model's input size, with its label."""
        if source is not None:
            source.check_trainable()
        options = self.config.options
        return TrainExample(
            TrainTransform(
                size=model.input_spec.size,
                channels=model.in_chans,
                crop=options["data.crop"],
                scale=options["data.crop_scale"],
                ratio=options["data.crop_ratio"],
                flip=options["data.hflip_prob"],
                interpolation=options["data.interpolation"],
                auto_augment=options["data.auto_augment"],
                pipeline=options["data.pipeline"],
                exif_orientation=source is not None and source.exif_orientation,
            )
        )

    def eval_transform(self, model: Model, source: ImageSource | None = None) -> EvalExample:
        """Return the evaluation transform of the model, with all labels of an image."""
        if source is None:
            return EvalExample(eval_image_transform(model), 1)
        transform = eval_image_transform(model, exif_orientation=source.exif_orientation)
        return EvalExample(transform, source.max_labels)

    @staticmethod
    def fits(model: Model) -> bool:
        """Return whether a model has one vector of logits per image."""
        return classifies(model)

    @property
    def model_options(self) -> Mapping[str, Any]:
        """The options of the model, with the evaluation crop of the config."""
        crop = {key: self.config.options[f"data.{key}"] for key in ("crop_pct", "crop_mode")}
        return {**self.config.model, **{key: value for key, value in crop.items() if value is not None}}

    def _augmentation(self) -> Augmentation:
        options = self.config.options
        values = {name.removeprefix("augment."): options[name] for name in _AUGMENT_KEYS}
        # timm mixes uint8 images, so the exact pipeline rounds.
        return Augmentation(
            **values | {"mixup_group": self.mixup_group}, round_mixed=options["data.pipeline"] == "exact"
        )

    def row_group(self) -> RowGroup:
        """Return the number of images that are mixed with each other."""
        augmentation = self._augmentation()
        return RowGroup(augmentation.mixup_group, "augment.mixup_group") if augmentation.mixes else RowGroup()

    def with_row_group(self, rows: int) -> Self:
        """Return the same task with groups that divide `rows`."""
        return dataclasses.replace(self, mixup_group=math.gcd(self.mixup_group, rows))

    def prepare_batch(self, model: Model, batch: Batch, key: Key[Array, ""]) -> Batch:
        """Augment, mix and normalize images (b, h, w, c), and convert labels (b,) to soft targets (b, k)."""
        images, targets = augment(
            batch["image"],
            batch["label"],
            key,
            self._augmentation(),
            num_classes=model.num_classes,
            mean=model.input_spec.mean,
            std=model.input_spec.std,
        )
        return {"image": images, "target": targets}

    def train_loss(
        self, model: Model, variables: dict[str, Any], batch: Batch, key: Key[Array, ""]
    ) -> tuple[dict[str, LossTerm], Any]:
        """Compute the mean over images of the cross-entropy and of the weighted KL divergences, if there are any.

        With a teacher and the temperature T, the loss is

            (1 - weight) CE(targets, student) + weight T^2 KL(softmax(teacher / T) || softmax(student / T))

        References: Hinton et al., Distilling the Knowledge in a Neural Network, 2015; Touvron et al., Training
        data-efficient image transformers & distillation through attention, 2021, soft distillation. For MESA, Du et
        al., Sharpness-Aware Training for Free, 2022, with a temperature of 1.
        """
        options = self.config.options
        logits, batch_stats = model.apply_train(variables, batch["image"], key=key)
        losses = {"cross_entropy": cross_entropy(logits, batch["target"])}
        if self.teacher():
            weight, temperature = options["loss.teacher_weight"], options["loss.teacher_temperature"]
            losses["cross_entropy"] *= 1 - weight
            divergence = kl_divergence(logits / temperature, batch["teacher_targets"])
            losses["teacher"] = weight * temperature**2 * divergence
        if self.distillation():
            losses["mesa"] = options["loss.mesa"] * kl_divergence(logits, batch["ema_targets"])
        return {name: LossTerm(values.sum(), len(values)) for name, values in losses.items()}, batch_stats

    def distillation(self) -> EmaDistillation | None:
        """Return the start of MESA."""
        options = self.config.options
        return EmaDistillation(options["loss.mesa_start"], "loss.mesa") if options["loss.mesa"] else None

    def ema_targets(self, model: Model, variables: dict[str, Any], batch: Batch) -> Array:
        """Compute the probabilities of the classes (b, k) for the augmented images, without dropout."""
        return jax.nn.softmax(model.apply(variables, batch["image"]))

    def teacher(self) -> TeacherSource | None:
        """Return the teacher of `loss.teacher`."""
        source = self.config.options["loss.teacher"]
        return None if source is None else TeacherSource(source, "loss.teacher")

    def check_teacher(self, teacher: Model, teacher_labels: Labels, labels: Labels) -> None:
        """Check that a teacher takes gray or RGB images and has the classes of the dataset."""
        check_teacher(teacher, teacher_labels, labels)

    def teacher_targets(self, teacher: Model, variables: dict[str, Any], model: Model, batch: Batch) -> Array:
        """Compute the teacher's probabilities of the classes (b, k) for the augmented images, at the temperature."""
        temperature = self.config.options["loss.teacher_temperature"]
        return soft_targets(teacher, variables, model.input_spec, batch["image"], temperature)

    def preprocessing(self, model: Model, labels: Labels) -> dict[str, Any]:
        """Return the evaluation transform of the model."""
        return super().preprocessing(model, labels) | {"exif_orientation": is_turned_upright(labels)}

    def eval_context(self, source: ImageSource) -> np.ndarray:
        """Return the mask of the classes that predictions are restricted to, bool (k,)."""
        return class_mask(source)

    def evaluate_batch(self, model: Model, variables: dict[str, Any], batch: Batch, context: Array) -> EvalOutput:
        """Compute hits and losses of a batch.

        Logits of classes outside the mask `context` are set to -inf.
        """
        logits = model.apply(variables, model.input_spec.normalize(batch["image"]))
        logits = jnp.where(context, logits, -jnp.inf)
        counted = batch["mask"] & (batch["label"] >= 0).any(axis=1)
        totals = hits_and_loss(logits, batch["label"], counted)
        return EvalOutput(totals, {"label": batch["label"], "logits": logits})

    def collect(self, rows: dict[str, np.ndarray], index: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return index, first label and the five most probable classes of each image."""
        return index, rows["label"][:, 0].astype(np.int32), *top_classes(rows["logits"])

    def score(self, totals: Mapping[str, Any], collected: list[Any], source: ImageSource) -> Scores:
        """Compute top-1 and top-5 in percent, the mean loss and the number of scored images."""
        count = int(totals["count"])
        return {
            "top1": 100.0 * totals["top1"] / max(count, 1),
            "top5": 100.0 * totals["top5"] / max(count, 1),
            "loss": totals["loss"] / max(count, 1),
            "count": count,
        }

    def join_predictions(self, collected: list[tuple[np.ndarray, ...]]) -> dict[str, np.ndarray]:
        """Return labels (n,), and the most probable classes with their probabilities (n, 5), in the source's order."""
        index, *arrays = (np.concatenate(parts) for parts in zip(*collected, strict=True))
        order = np.argsort(index, kind="stable")
        return dict(zip(("labels", "classes", "probabilities"), (array[order] for array in arrays), strict=True))

    def baseline_score(self, source: ImageSource) -> float:
        """Compute the top-1 of always predicting the most frequent class, from at most 2,000 evenly spaced records.

        Raises:
            TaskError: none of these records can be read.
        """
        indices = np.linspace(0, len(source) - 1, min(len(source), MAX_LABELS)).astype(int)
        labels, failure = Counter(), None
        for index in indices.tolist():
            try:
                labels[source[index]["label"]] += 1
            except DataError as error:  # unreadable records are handled in training, by config.data.on_bad_record
                failure = error
        if not labels:
            raise TaskError(
                f"none of {count(len(indices), 'training record')} can be read ({failure}); prepare the dataset again"
            )
        return 100 * max(labels.values()) / labels.total()

    def describe_evaluation(self, model: Model, source: ImageSource) -> dict[str, Any]:
        """Return input size, crop, and the number of classes that predictions are restricted to."""
        transform = eval_image_transform(model)
        return {
            "input_size": list(transform.size),
            "crop_pct": transform.crop_pct,
            "crop_mode": transform.crop_mode,
            "num_classes": model.num_classes,
            "ranked_classes": int(self.eval_context(source).sum()),
        }

    @staticmethod
    def describe_input(record: Mapping[str, Any]) -> str:
        """Return the input size and the crop."""
        return f"{'x'.join(map(str, record['input_size']))}, crop {record['crop_pct']} {record['crop_mode']}"

    @staticmethod
    def remarks(record: Mapping[str, Any]) -> Iterable[str]:
        """Yield a remark on the number of classes, if predictions were restricted."""
        if record["ranked_classes"] < record["num_classes"]:
            total = count(record["num_classes"], "class")
            yield f"restricted to the {record['ranked_classes']} of {total} that occur in it"

    @staticmethod
    def score_text(scores: Mapping[str, Any], split: str) -> ScoreText:
        """Return accuracies with the 95 % interval of top-1."""
        return report.score_text(scores, split)

    def predictor(self, model: Model, labels: Labels) -> ImagePredictor:
        """Return the classifier of images."""
        transform = eval_image_transform(model, exif_orientation=is_turned_upright(labels))
        return ImagePredictor(model, transform, labels)

    def report_sections(self, workdir: epath.Path, labels: Labels, split: str) -> list[Section]:
        """Return a gallery of predictions and, for few classes, the confusion matrix."""
        return report.sections(workdir, labels, lambda: self.open_source(split))
