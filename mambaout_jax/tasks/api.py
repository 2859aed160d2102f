"""What a task is: everything that depends on what a label is, behind one base class.

`data`, `run`, `train`, `evaluate`, `report` and `cli` know this class and no label. A task is built from the plain
values of a run's config, which costs nothing. It owns the records and their transforms on the host, the preparation of
batches on the device, the loss, the metrics and what a prediction is.
"""

import abc
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import numpy as np
from etils import epath
from jaxtyping import Array, Key

from mambaout_jax.checks import Key as ConfigKey
from mambaout_jax.data import Source
from mambaout_jax.data.pipeline import Batch, EvalExampleTransform, Example, TrainExampleTransform
from mambaout_jax.models import Model

Labels = Mapping[str, Any]
Scores = dict[str, float]


class Metric(NamedTuple):
    """A number of an evaluation.

    Args:
        key: in scores and records.
        label: for display, such as "top-1".
        unit: for display, such as "%"; empty where there is none.
        digits: after the decimal point.
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
        """Return a value with its digits, without the unit."""
        return f"{value:.{self.digits}f}"


class LossTerm(NamedTuple):
    """One term of a loss: numerator / denominator.

    Both are summed over all microbatches and devices before they are divided. The gradient is that of the numerator
    alone, so a weight of the term belongs there.

    Args:
        denominator: a plain number where it does not depend on the batch; then it costs nothing to sum up.
    """

    numerator: Array
    denominator: Array | float


class EvalOutput(NamedTuple):
    """The result of evaluating a batch.

    Args:
        totals: sums over the rows of the batch that count, by name; numbers or arrays.
        rows: a tree of arrays with one row for each of the batch's.
    """

    totals: dict[str, Array]
    rows: Any


class RowGroup(NamedTuple):
    """How many consecutive rows of a batch belong together.

    Args:
        key: the config key that says so; empty for groups of one.
    """

    size: int = 1
    key: str = ""


class TaskConfig(NamedTuple):
    """The plain values that a task is built from.

    Args:
        dataset: TFDS name; None where an imported model names none.
        data_dir: folder of prepared datasets; None for TFDS's own.
        model: name and the options that are set.
        options: values of the task's own `keys`, by dotted name.
    """

    dataset: str | None
    data_dir: str | None
    model: Mapping[str, Any]
    options: Mapping[str, Any]


class Prediction(Protocol):
    """What a model predicts for one image."""

    def to_json(self, limit: int) -> list[dict[str, Any]]:
        """Return the `limit` most certain parts of the prediction as JSON values."""

    def describe(self, limit: int) -> list[str]:
        """Return the same in words, a line each."""


class Predictor(Protocol):
    """A model that takes image files."""

    def prepare(self, image: bytes) -> Example:
        """Return the example of an encoded image.

        Raises:
            DataError: it does not decode or does not fit.
        """

    def empty(self) -> Example:
        """Return an example of the same structure, to fill up a batch."""

    def __call__(self, variables: dict[str, Any], batch: Batch) -> list[Prediction | str]:
        """Return a prediction for each row, or a sentence about why there is none."""


class ScoreText(NamedTuple):
    """Scores as a report shows them.

    Args:
        summary: one sentence; empty for none.
        columns: text by the title of its column.
        note: one sentence below the table; empty for none.
    """

    summary: str
    columns: dict[str, str]
    note: str = ""


class Section(NamedTuple):
    """A part of a report: a title, and HTML that is safe to include."""

    title: str
    html: str


class Task(abc.ABC):
    """Everything that depends on what a label is. Instances are plain values, as those of a frozen dataclass.

    What most tasks do not need has a default.

    Args:
        name: of the task, as `config.task` names it.
        keys: config keys that only this task has, by dotted name.
        metrics: of an evaluation. The first is the headline: it names the best checkpoint and the report. One with the
            key "loss" is drawn with the training loss.
        loss_terms: names of the terms of the loss.
        scores_from_rows: whether `score` needs what `collect` returns; otherwise only predictions are made of it.
    """

    name: ClassVar[str]
    keys: ClassVar[Mapping[str, ConfigKey]] = MappingProxyType({})
    metrics: ClassVar[tuple[Metric, ...]]
    loss_terms: ClassVar[tuple[str, ...]]
    scores_from_rows: ClassVar[bool] = False

    @classmethod
    @abc.abstractmethod
    def from_config(cls, config: TaskConfig) -> Self:
        """Build the task.

        Raises:
            TaskError: values do not fit together.
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
            DataError: it is not there or is of another kind.
        """

    @staticmethod
    @abc.abstractmethod
    def labels_of_size(num_classes: int) -> Labels:
        """Return labels for a number of classes, to build a model for a dataset that is not there."""

    def known_size(self, split: str) -> tuple[int, Labels] | None:
        """Return images and labels of a split of a well-known dataset, which need not be prepared."""
        return None

    def open_eval_sources(self) -> list[Source]:
        """Open what an evaluation scores besides the validation split."""
        return []

    @abc.abstractmethod
    def check_source(self, source: Source, labels: Labels) -> None:
        """Check that the targets of a source mean what those of a model mean.

        Raises:
            TaskError: they do not.
        """

    @abc.abstractmethod
    def imported_labels(self, model: Model, labels: Labels) -> "ImportedLabels":
        """Return what the outputs of imported weights mean.

        Args:
            labels: what their file tells of it.
        """

    @abc.abstractmethod
    def train_transform(self, model: Model, source: Source | None = None) -> TrainExampleTransform:
        """Return the transform of records for training; image and targets go through it together.

        Raises:
            DataError: the source cannot be trained on.
        """

    @abc.abstractmethod
    def eval_transform(self, model: Model, source: Source | None = None) -> EvalExampleTransform:
        """Return the transform of records for evaluation; without a source, for images of any."""

    # Learning, on the devices.

    @abc.abstractmethod
    def build_model(self, labels: Labels) -> Model:
        """Build the model that the config describes, for targets with this meaning.

        Raises:
            ModelError: an option does not fit.
        """

    def row_group(self) -> RowGroup:
        """Return how many consecutive rows of a training batch belong together and stay on one device."""
        return RowGroup()

    def with_row_group(self, rows: int) -> Self:
        """Return the same task with groups that fit devices with `rows` rows each."""
        return self

    @abc.abstractmethod
    def prepare_batch(self, model: Model, batch: Batch, key: Key[Array, ""]) -> Batch:
        """Compute what is trained on from a whole batch as it came from the host: normalized images and targets."""

    @abc.abstractmethod
    def train_loss(
        self, model: Model, variables: dict[str, Any], batch: Batch, key: Key[Array, ""]
    ) -> tuple[Mapping[str, LossTerm], Any]:
        """Compute the terms of the loss of a prepared microbatch, and the updated batch statistics.

        As often as the task needs it the model runs here, with draws from the key and with a look at the targets.
        """

    def eval_context(self, source: Source) -> Any:
        """Return a tree of arrays, the same for all batches of a source, for `evaluate_batch`."""
        return {}

    @abc.abstractmethod
    def evaluate_batch(self, model: Model, variables: dict[str, Any], batch: Batch, context: Any) -> EvalOutput:
        """Compute what a batch gives, in as many forward passes as it needs. Rows without `mask` do not count."""

    # Results, on the host.

    @abc.abstractmethod
    def collect(self, rows: Any, index: np.ndarray) -> Any:
        """Return what to keep of the rows of this process, as a picklable value.

        Args:
            rows: of `evaluate_batch`, as NumPy arrays, with the records that were read.
            index: of these records in their source.
        """

    @abc.abstractmethod
    def score(self, totals: Mapping[str, Any], collected: list[Any], source: Source) -> Scores:
        """Compute the scores of a source: a value for each metric, and "count", the images that were scored.

        Args:
            totals: summed over the source.
            collected: of all batches of all processes; empty where neither scores nor predictions are made of it.
        """

    @abc.abstractmethod
    def join_predictions(self, collected: list[Any]) -> dict[str, np.ndarray]:
        """Join what was collected to arrays by name, in the order of the source."""

    @abc.abstractmethod
    def baseline_score(self, source: Source) -> float:
        """Compute the headline metric of a model that ignores the image."""

    def describe_evaluation(self, model: Model, source: Source) -> dict[str, Any]:
        """Return how images are evaluated, as JSON values for a record."""
        return {}

    @staticmethod
    def describe_input(record: Mapping[str, Any]) -> str:
        """Return the same of a record in words."""
        return ""

    @staticmethod
    def remarks(record: Mapping[str, Any]) -> Iterable[str]:
        """Return sentences about how a record was scored."""
        return ()

    @staticmethod
    @abc.abstractmethod
    def score_text(scores: Mapping[str, Any], split: str) -> ScoreText:
        """Return scores as a report shows them."""

    @abc.abstractmethod
    def predictor(self, model: Model, labels: Labels) -> Predictor:
        """Return what predicts image files with a model."""

    def report_sections(self, workdir: epath.Path, labels: Labels, split: str) -> list[Section]:
        """Return the parts of a report that show predictions.

        Raises:
            TaskError: a file of the workdir is damaged.
        """
        return []


class ImportedLabels(NamedTuple):
    """What the outputs of imported weights mean.

    Args:
        labels: for `build_model` and predictions.
        dataset: TFDS name of the dataset with these labels; None where none is known.
        remark: a sentence about what was assumed; empty where nothing was.
    """

    labels: dict[str, Any]
    dataset: str | None
    remark: str
