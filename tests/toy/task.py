"""Find spots: score the cells of a map, sample some of them with a key, and refine those that have a target."""

import dataclasses
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mambaout_jax.checks import ConfigKey
from mambaout_jax.data import DataError
from mambaout_jax.models import create_model
from mambaout_jax.tasks.api import (
    EvalOutput,
    ImportedLabels,
    LossTerm,
    Metric,
    ScoreText,
    Section,
    Task,
    TaskConfig,
)
from mambaout_jax.tasks.errors import TaskError
from tests.toy.model import CELL
from tests.toy.records import SIDE, SpotSource, SpotTransform

GRID = SIDE // CELL
THRESHOLD = 0.5
PLACE_WEIGHT = 2.0


@dataclasses.dataclass(frozen=True)
class Spots(Task):
    """See the module.

    Labels are {"kinds": list of names}; there is one kind.
    """

    config: TaskConfig

    name = "spots"
    keys = MappingProxyType(
        {
            "spots.negatives": ConfigKey(float, "0..1", 0.05, "share of empty cells that the loss samples"),
            "spots.flip_prob": ConfigKey(float, "0..1", 0.5, "probability of a horizontal flip"),
        }
    )
    metrics = (
        Metric("error", "count error", digits=3, higher_is_better=False),
        Metric("recall", "recall", "%"),
    )
    loss_terms = ("proposal", "place")
    scores_from_rows = True

    @classmethod
    def from_config(cls, config):
        return cls(config)

    def open_source(self, split):
        return SpotSource(self.config.dataset, split, self.config.data_dir)

    @staticmethod
    def labels_of_size(num_classes):
        return {"kinds": [f"kind {index}" for index in range(num_classes)]}

    def check_source(self, source, labels):
        if source.labels != labels:
            raise TaskError(f"dataset {source.name!r} has {source.labels} where the model has {labels}")

    def imported_labels(self, model, labels):
        return ImportedLabels({"kinds": ["spot"]}, None, "")

    def train_transform(self, model, source=None):
        return SpotTransform(self.config.options["spots.flip_prob"])

    def eval_transform(self, model, source=None):
        return SpotTransform(0.0)

    def build_model(self, labels):
        return create_model(num_classes=len(labels["kinds"]), **self.config.model)

    def prepare_batch(self, model, batch, key):
        return {"image": model.input_spec.normalize(batch["image"]), "spots": batch["spots"]}

    def train_loss(self, model, variables, batch, key):
        """The first stage scores cells; the second refines the cells of the targets, with noise from the key."""
        sample_key, noise_key, model_key = jax.random.split(key, 3)
        maps, batch_stats = model.apply_train(variables, batch["image"], key=model_key, output="features")
        variables = {**variables, "batch_stats": batch_stats}
        scores, batch_stats = model.call(variables, "propose", maps[-1], train=True)
        scores = scores[..., 0]
        place, valid = batch["spots"]["place"], batch["spots"]["valid"]
        cell = jnp.clip((place * GRID).astype(jnp.int32), 0, GRID - 1)
        rows, columns = cell[..., 0], cell[..., 1]
        images = jnp.arange(len(place))[:, None]
        truth = jnp.zeros(scores.shape).at[images, rows, columns].max(valid.astype(jnp.float32))
        drawn = jax.random.bernoulli(sample_key, self.config.options["spots.negatives"], scores.shape)
        sampled = (truth > 0) | drawn
        entropy = jnp.logaddexp(0.0, scores) - scores * truth
        taken = maps[-1][images, rows, columns]
        taken = taken + 0.1 * jax.random.normal(noise_key, taken.shape)
        offset, _ = model.call(variables, "refine", taken)
        distance = jnp.abs(offset - (place * GRID - cell)).sum(-1)
        return {
            "proposal": LossTerm(jnp.where(sampled, entropy, 0.0).sum(), sampled.sum().astype(jnp.float32)),
            "place": LossTerm(PLACE_WEIGHT * jnp.where(valid, distance, 0.0).sum(), valid.sum().astype(jnp.float32)),
        }, batch_stats

    def evaluate_batch(self, model, variables, batch, context):
        scores = score_cells(model, variables, batch["image"])
        return EvalOutput({"images": batch["mask"].sum()}, {"scores": scores, "spots": batch["spots"]})

    def collect(self, rows, index):
        spots = rows["spots"]
        return [
            {"index": int(number), "found": find_spots(scores), "truth": place[valid]}
            for number, scores, place, valid in zip(index, rows["scores"], spots["place"], spots["valid"], strict=True)
        ]

    def score(self, totals, collected, source):
        images = [image for part in collected for image in part]
        errors = [abs(len(image["found"]) - len(image["truth"])) for image in images]
        hits = [
            len(image["found"]) > 0 and np.abs(image["found"][:, :2] - spot).max(axis=1).min() < 1 / GRID
            for image in images
            for spot in image["truth"]
        ]
        return {"error": float(np.mean(errors)), "recall": 100 * float(np.mean(hits)), "count": int(totals["images"])}

    def join_predictions(self, collected):
        images = sorted((image for part in collected for image in part), key=lambda image: image["index"])
        return {
            "found": np.concatenate([image["found"] for image in images]),
            "counts": np.array([len(image["found"]) for image in images]),
        }

    def baseline_score(self, source):
        counts = [len(source[index]["spots"]) for index in range(100)]
        return float(np.mean(np.abs(np.subtract(counts, np.median(counts)))))

    def describe_evaluation(self, model, source):
        return {"passes": 2}

    @staticmethod
    def describe_input(record):
        return f"{record['passes']} passes"

    @staticmethod
    def remarks(record):
        yield "images are seen mirrored too"

    @staticmethod
    def score_text(scores, split):
        return ScoreText(f"recall {scores['recall']:.1f} %", {"count error": f"{scores['error']:.3f}"})

    def predictor(self, model, labels):
        return SpotPredictor(model)

    def report_sections(self, workdir, labels, split):
        with np.load(workdir / "predictions.npz") as arrays:
            return [Section("Spots", f"<p>{arrays['counts'].sum()} spots of kind {labels['kinds'][0]}</p>")]


def score_cells(model, variables, images):
    """Compute scores (b, rows, columns) in two passes: over the images as they are, and mirrored."""
    images = model.input_spec.normalize(images)

    def score(images):
        maps = model.apply(variables, images, output="features")
        scores, _ = model.call(variables, "propose", maps[-1])
        return jax.nn.sigmoid(scores[..., 0])

    return (score(images) + score(images[:, :, ::-1])[:, :, ::-1]) / 2


def find_spots(scores):
    """List row and column in 0..1 and the score of each cell above the threshold: (n, 3)."""
    cells = np.argwhere(scores > THRESHOLD)
    return np.concatenate([(cells + 0.5) / GRID, scores[scores > THRESHOLD][:, None]], axis=1).astype(np.float32)


class SpotPrediction(NamedTuple):
    """The spots of an image, the most certain first."""

    found: np.ndarray

    def to_json(self, limit):
        return [dict(zip(("row", "column", "score"), map(float, spot), strict=True)) for spot in self.found[:limit]]

    def describe(self, limit):
        return [f"row {row:.2f} column {column:.2f} score {score:.2f}" for row, column, score in self.found[:limit]]


class SpotPredictor:
    def __init__(self, model):
        self._transform = SpotTransform(0.0)
        self._scores = jax.jit(lambda variables, images: score_cells(model, variables, images))

    def prepare(self, image):
        try:
            return {"image": self._transform({"image": image, "spots": np.zeros((0, 2))})["image"]}
        except OSError as error:
            raise DataError(str(error)) from error

    def empty(self):
        return {"image": self._transform.empty()["image"]}

    def __call__(self, variables, batch):
        found = map(find_spots, np.asarray(self._scores(variables, batch["image"])))
        return [SpotPrediction(spots[np.argsort(-spots[:, 2], kind="stable")]) for spots in found]
