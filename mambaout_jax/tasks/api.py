"""The base class of tasks: everything that depends on what a label is.

`data`, `run`, `train`, `evaluate`, `report` and `cli` use this interface only; of labels they know nothing but the
names of classes. A task is cheap to build from the plain values of a run's config. It defines how records are read and
transformed on the host, how batches are prepared on the device, the loss, the metrics and the predictions.
"""

import abc
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Float, Key

from mambaout_jax.checks import ConfigKey
from mambaout_jax.data import Source
from mambaout_jax.data.pipeline import Batch, EvalExampleTransform, Example, TrainExampleTransform
from mambaout_jax.models import Model
from mambaout_jax.tasks.errors import TaskError

# The largest batch of a prediction, so that any number of images fits into memory.
MAX_PREDICTED = 32

Labels = Mapping[str, Any]
Scores = dict[str, float]


class Metric(NamedTuple):
    """A metric of an evaluation.

    Args:
        key: key in scores and records.
        label: display name, such as "top-1".
        unit: display unit, such as "%"; empty for none.
        digits: number of digits after the decimal point.
    """

    key: str
    label: str
    unit: str = ""
    digits: int = 2
    higher_is_better: bool = True

    @property
    def title(self) -> str:
        """Return label and unit."""
        return f"{self.label} {self.unit}".strip()

    def format(self, value: float) -> str:
        """Return a value as text, without the unit."""
        return f"{value:.{self.digits}f}"


class LossTerm(NamedTuple):
    """One term of a loss: numerator / denominator.

    Both are summed over all microbatches and devices before the division. Only the numerator is differentiated, so a
    weight of the term belongs there.

    Args:
        denominator: a plain number if it does not depend on the batch; then no extra pass over the batch is needed.
    """

    numerator: Array
    denominator: Array | float


class EvalOutput(NamedTuple):
    """The result of evaluating a batch.

    Args:
        totals: sums over the valid rows of the batch, by name; numbers or arrays.
        rows: a tree of arrays with one row per row of the batch.
    """

    totals: dict[str, Array]
    rows: Any


class RowGroup(NamedTuple):
    """The number of consecutive rows of a batch that must stay on one device.

    Args:
        key: the config key that sets the size; empty for groups of one.
    """

    size: int = 1
    key: str = ""


class EmaDistillation(NamedTuple):
    """The use of predictions of the moving average of the weights (EMA) as targets of the loss.

    Args:
        start: fraction of the training after which they are used.
        key: the config key that enables it.
    """

    start: float
    key: str


class TeacherSource(NamedTuple):
    """The trained weights whose predictions are targets of the loss.

    Args:
        source: the workdir of a run, or any source of `weights.from_torch`.
        key: the config key that names it.
    """

    source: str
    key: str


class TaskConfig(NamedTuple):
    """The plain values that a task is built from.

    Args:
        dataset: TFDS name; None if the dataset of an imported model is unknown.
        data_dir: folder of prepared datasets; None for the default of TFDS.
        model: the model's name and the options that are set.
        options: values of the task's own `keys`, by dotted name.
    """

    dataset: str | None
    data_dir: str | None
    model: Mapping[str, Any]
    options: Mapping[str, Any]


class Prediction(Protocol):
    """The prediction of a model for one image."""

    def to_json(self, limit: int) -> list[dict[str, Any]]:
        """Return the `limit` most confident parts of the prediction as JSON values."""

    def describe(self, limit: int) -> list[str]:
        """Return the `limit` most confident parts of the prediction as lines of text."""

    def files(self, image: bytes) -> dict[str, bytes]:
        """Return files that show the prediction for an encoded image, by the ending of their names."""


class Predictor(Protocol):
    """A model with the transform of image files."""

    def prepare(self, image: bytes) -> Example:
        """Return the example of an encoded image.

        Raises:
            DataError: the image cannot be decoded or is not supported.
        """

    def empty(self) -> Example:
        """Return an example of the same structure, to pad a batch."""

    def __call__(self, variables: dict[str, Any], batch: Batch) -> list[Prediction | str]:
        """Return a prediction or an error message for each row."""


def stack_examples(predictor: Predictor, examples: Sequence[Example], batch_size: int) -> Batch:
    """Stack examples to a batch of a fixed size, for which a predictor is compiled once, padded with empty ones."""
    padded = [*examples, *[predictor.empty()] * (batch_size - len(examples))]
    return jax.tree.map(lambda *rows: np.stack(rows), *padded)


class ScoreText(NamedTuple):
    """Scores formatted for a report.

    Args:
        summary: one sentence; empty for none.
        columns: text by column title.
        note: one sentence below the table; empty for none.
    """

    summary: str
    columns: dict[str, str]
    note: str = ""


class Section(NamedTuple):
    """A section of a report: its title and its escaped HTML."""

    title: str
    html: str


class Task(abc.ABC):
    """The base class of tasks. Subclasses are frozen dataclasses of plain values.

    Methods that most tasks do not need have a default.

    Args:
        name: the value of `config.task` that selects the task.
        keys: the task's own config keys, by dotted name.
        metrics: the metrics of an evaluation. The first is the primary metric: it selects the best checkpoint and is
            shown first. A metric with the key "loss" is plotted with the training loss.
        loss_terms: names of the terms of the loss, as a class attribute or a property.
        inference_keys: those of `keys` that evaluation and prediction depend on, which exported weights record.
        scores_from_rows: whether `score` needs the values that `collect` returns; otherwise only `join_predictions`
            does.
        exported_maps: those of the outputs of an exported program that are maps (b, h, w, c) if they have four axes,
            which ONNX has as (b, c, h, w).
    """

    name: ClassVar[str]
    keys: ClassVar[Mapping[str, ConfigKey]] = MappingProxyType({})
    inference_keys: ClassVar[tuple[str, ...]] = ()
    metrics: ClassVar[tuple[Metric, ...]]
    loss_terms: tuple[str, ...]
    scores_from_rows: ClassVar[bool] = False
    exported_maps: ClassVar[tuple[str, ...]] = ("logits",)

    @classmethod
    @abc.abstractmethod
    def from_config(cls, config: TaskConfig) -> Self:
        """Build the task.

        Raises:
            TaskError: the values are inconsistent.
        """

    def check(self) -> None:
        """Check that the options of the model and the transforms fit together, before any dataset is opened.

        Raises:
            ModelError, DataError, TaskError: they do not.
        """
        model = self.build_model(self.labels_of_size(2))
        self.train_transform(model)
        self.eval_transform(model)

    # Data, on the host.

    @abc.abstractmethod
    def open_source(self, split: str) -> Source:
        """Open a split of the dataset.

        Raises:
            DataError: it does not exist or has no targets for this task.
        """

    @staticmethod
    @abc.abstractmethod
    def labels_of_size(num_classes: int) -> Labels:
        """Return labels for a number of classes, to build a model without its dataset."""

    def known_size(self, split: str) -> tuple[int, Labels] | None:
        """Return the number of images and the labels of a split of a well-known dataset, prepared or not."""
        return None

    def open_eval_sources(self) -> list[Source]:
        """Open the additional sets that an evaluation scores after the validation split."""
        return []

    @abc.abstractmethod
    def check_source(self, source: Source, labels: Labels) -> None:
        """Check that the labels of a source match those of a model.

        Raises:
            TaskError: they differ.
        """

    @abc.abstractmethod
    def imported_labels(self, model: Model, labels: Labels) -> "ImportedLabels":
        """Return the labels of imported weights.

        Args:
            labels: the labels in the weights file.
        """

    @abc.abstractmethod
    def train_transform(self, model: Model, source: Source | None = None) -> TrainExampleTransform:
        """Return the joint transform of image and targets for training.

        Raises:
            DataError: the source has no targets to train on.
        """

    @abc.abstractmethod
    def eval_transform(self, model: Model, source: Source | None = None) -> EvalExampleTransform:
        """Return the transform of records for evaluation; without a source, for images of any dataset."""

    def model_images(self, model: Model, source: Source, indices: Sequence[int]) -> Float[Array, "b h w c"]:
        """Return normalized images of records at the model's input size, to compare the logits of two models.

        Raises:
            DataError: a record cannot be decoded.
        """
        transform = self.eval_transform(model, source)
        return model.input_spec.normalize(jnp.asarray(np.stack([transform(source[i])["image"] for i in indices])))

    # Learning, on the devices.

    @staticmethod
    def fits(model: Model) -> bool:
        """Return whether the outputs of a model are those of the task."""
        return True

    @abc.abstractmethod
    def build_model(self, labels: Labels) -> Model:
        """Build the model of the config for these labels.

        Raises:
            ModelError: an option is invalid.
        """

    def row_group(self) -> RowGroup:
        """Return the number of consecutive rows of a training batch that must stay on one device."""
        return RowGroup()

    def with_row_group(self, rows: int) -> Self:
        """Return the same task with groups that divide `rows` rows per device."""
        return self

    @abc.abstractmethod
    def prepare_batch(self, model: Model, batch: Batch, key: Key[Array, ""]) -> Batch:
        """Compute normalized images and targets from a whole batch of the data pipeline."""

    @abc.abstractmethod
    def train_loss(
        self, model: Model, variables: dict[str, Any], batch: Batch, key: Key[Array, ""]
    ) -> tuple[Mapping[str, LossTerm], Any]:
        """Compute the terms of the loss of a prepared microbatch, and the updated batch statistics.

        A task may call the model several times, sample from the key and read the targets.
        """

    def distillation(self) -> EmaDistillation | None:
        """Return how the loss uses predictions of the moving average of the weights; None if it does not."""
        return None

    def ema_targets(self, model: Model, variables: dict[str, Any], batch: Batch) -> Any:
        """Compute targets for a prepared microbatch from the moving average of the weights, if there is a distillation.

        `train_loss` reads them as batch["ema_targets"]. Before the start of the distillation they are zeros, for which
        their term of the loss must be 0.

        Args:
            variables: the moving average; no gradient is computed for it.
        """
        return {}

    def teacher(self) -> TeacherSource | None:
        """Return the teacher whose predictions the loss uses; None if it uses none."""
        return None

    def check_teacher(self, teacher: Model, teacher_labels: Labels, labels: Labels) -> None:
        """Check that the predictions of a teacher, if there is one, can be targets of the loss: by equal labels.

        Args:
            teacher: a model that was trained for this task.
            teacher_labels: the labels of its outputs.
            labels: the labels of the dataset.

        Raises:
            TaskError: they cannot.
        """
        if dict(teacher_labels) != dict(labels):
            raise TaskError(
                "the labels of the teacher differ from those of the dataset; use a teacher trained on the same labels"
            )

    def teacher_targets(self, teacher: Model, variables: dict[str, Any], model: Model, batch: Batch) -> Any:
        """Compute targets for a prepared microbatch from a teacher, if there is one.

        `train_loss` reads them as batch["teacher_targets"].

        Args:
            teacher: the teacher, built for images of the size of the model's.
            variables: its weights; no gradient is computed for them.
            model: the model in training, by whose `input_spec` the images are normalized.
        """
        return {}

    def exported_outputs(
        self, model: Model, variables: dict[str, Any], images: Float[Array, "b h w c"]
    ) -> dict[str, Array]:
        """Compute what an exported program returns for normalized images: arrays of fixed sizes, by name."""
        return {"logits": model.apply(variables, images)}

    def align_outputs(
        self, outputs: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]
    ) -> Mapping[str, np.ndarray]:
        """Return the outputs of an exported program in the order of the expected ones.

        For outputs whose order depends on rounding, such as detections in the order of their scores.
        """
        return outputs

    def preprocessing(self, model: Model, labels: Labels) -> dict[str, Any]:
        """Return how a picture becomes the input of an exported program, as JSON values.

        "crop_mode", "crop_pct" and "interpolation" as in `Model.input_spec`; "antialias": whether the interpolation is
        widened where it reduces; "exif_orientation": whether images are turned upright.
        """
        spec = model.input_spec
        return {
            "crop_mode": spec.crop_mode,
            "crop_pct": spec.crop_pct,
            "interpolation": spec.interpolation,
            "antialias": True,
            "exif_orientation": True,
        }

    def class_colors(self, class_names: Sequence[str]) -> list[str] | None:
        """Return a color for each class, as #rrggbb, where predictions are pictures; None for other tasks."""
        return None

    def eval_context(self, source: Source) -> Any:
        """Return the argument `context` of `evaluate_batch`: a tree of arrays, the same for all batches of a source."""
        return {}

    @abc.abstractmethod
    def evaluate_batch(self, model: Model, variables: dict[str, Any], batch: Batch, context: Any) -> EvalOutput:
        """Compute totals and rows of a batch, in any number of forward passes. Rows with a false `mask` are padding."""

    # Results, on the host.

    @abc.abstractmethod
    def collect(self, rows: Any, index: np.ndarray) -> Any:
        """Return the part of this process's rows to keep, as a picklable value.

        Args:
            rows: rows of `evaluate_batch` for the records that were read, as NumPy arrays.
            index: indices of these records in their source.
        """

    @abc.abstractmethod
    def score(self, totals: Mapping[str, Any], collected: list[Any], source: Source) -> Scores:
        """Compute the scores of a source: a value for each metric, and "count", the number of scored images.

        Args:
            totals: sums over the source.
            collected: results of `collect` for all batches of all processes; empty if neither scores nor predictions
                need them.
        """

    @abc.abstractmethod
    def join_predictions(self, collected: list[Any]) -> dict[str, np.ndarray]:
        """Return the results of `collect` joined into arrays by name, in the order of the source."""

    @abc.abstractmethod
    def baseline_score(self, source: Source) -> float:
        """Compute the primary metric of a model that ignores the image."""

    def describe_evaluation(self, model: Model, source: Source) -> dict[str, Any]:
        """Return the settings of the evaluation as JSON values for its record."""
        return {}

    @staticmethod
    def describe_input(record: Mapping[str, Any]) -> str:
        """Return the input settings in a record as text."""
        return ""

    @staticmethod
    def remarks(record: Mapping[str, Any]) -> Iterable[str]:
        """Return remarks on the scores in a record."""
        return ()

    @staticmethod
    @abc.abstractmethod
    def score_text(scores: Mapping[str, Any], split: str) -> ScoreText:
        """Return scores formatted for a report."""

    @abc.abstractmethod
    def predictor(self, model: Model, labels: Labels) -> Predictor:
        """Return the predictor of image files."""

    def report_sections(self, workdir: epath.Path, labels: Labels, split: str) -> list[Section]:
        """Return the sections of a report that show predictions.

        Raises:
            TaskError: a file of the workdir is damaged.
        """
        return []


class ImportedLabels(NamedTuple):
    """The labels of imported weights.

    Args:
        labels: labels for `build_model` and predictions.
        dataset: TFDS name of the dataset with these labels; None if unknown.
        remark: a sentence about an assumption; empty for none.
    """

    labels: dict[str, Any]
    dataset: str | None
    remark: str
