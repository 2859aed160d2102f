"""The sections of a report on a classifier: accuracies, a gallery of predictions, the confusion matrix."""

import io
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath
from markupsafe import Markup
from PIL import Image

from mambaout_jax.checks import as_number
from mambaout_jax.data import DataError, EvalTransform
from mambaout_jax.data.imagenet_classes import class_word
from mambaout_jax.errors import reason
from mambaout_jax.machine import MachineError, describe_fault, raise_machine_fault
from mambaout_jax.pages.render import render
from mambaout_jax.tasks.api import Labels, ScoreText, Section
from mambaout_jax.tasks.classification.source import ImageSource
from mambaout_jax.tasks.errors import TaskError
from mambaout_jax.tasks.labels import class_name
from mambaout_jax.tasks.pictures import data_uri, encode_image
from mambaout_jax.tasks.predictions import NO_PREDICTIONS, evenly_spaced, open_evaluated, read_predictions
from mambaout_jax.words import count

NUM_MISTAKES, NUM_CORRECT = 32, 16
MAX_CONFUSION_CLASSES = 50
THUMBNAIL_SIDE = 112
_ARRAYS = ("labels", "classes", "probabilities", "fingerprint")


def sections(workdir: epath.Path, labels: Labels, open_split: Callable[[], ImageSource]) -> list[Section]:
    """Render the gallery and the confusion matrix.

    Args:
        open_split: opens the evaluated split.

    Raises:
        TaskError: predictions.npz is damaged.
    """
    predictions = _read_predictions(workdir)
    names = [class_word(str(name)) for name in labels.get("class_names") or ()]
    gallery = make_gallery(predictions, names, open_split)
    found = [Section("Predictions", Markup(render(__package__, "gallery.html.jinja", gallery=gallery)))]
    if confusion := make_confusion(predictions, names):
        html = render(__package__, "confusion.html.jinja", confusion=confusion)
        found.append(Section("Confusion matrix", Markup(html)))
    return found


def score_text(score: Mapping[str, Any], split: str) -> ScoreText:
    """Return accuracies, the interval of top-1, the loss and the number of misclassified images."""
    top1, scored = as_number(score.get("top1")), int(score.get("count", 0))
    wrong = f"{round(scored * (1 - top1 / 100)):,}" if math.isfinite(top1) else "unknown"
    return ScoreText(
        f"{wrong} of {count(scored, 'image')} of {split} misclassified",
        {
            "top-1, %": f"{top1:.2f}",
            "95 % interval": _interval(top1, scored),
            "top-5, %": f"{as_number(score.get('top5')):.2f}",
            "loss": f"{as_number(score.get('loss')):.4f}",
            "images": f"{scored:,}",
        },
        f"Every image of {split} is counted once. The 95 % interval accounts only for the number of images.",
    )


def _interval(percent: float, count: int) -> str:
    """Return the 95 % interval of an accuracy on `count` images.

    Reference: Wilson, "Probable inference, the law of succession, and statistical inference" (1927).
    """
    if not count or not math.isfinite(percent):
        return "unknown"
    p, z = percent / 100, 1.96
    middle = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return f"{100 * (middle - half):.2f} to {100 * (middle + half):.2f}"


def _read_predictions(workdir: epath.Path) -> dict[str, np.ndarray] | None:
    predictions = read_predictions(workdir, _ARRAYS)
    if predictions is None:
        return None
    labels, classes, probabilities, _ = predictions.values()
    if labels.ndim != 1 or classes.shape != probabilities.shape or classes.shape[:1] != labels.shape:
        raise TaskError(f"{workdir / 'predictions.npz'} has arrays of inconsistent shapes; evaluate the workdir again")
    return predictions if labels.size else None


def make_gallery(
    predictions: Mapping[str, np.ndarray] | None, names: list[str], open_split: Callable[[], ImageSource]
) -> dict[str, Any]:
    """Build the gallery: the most confident mistakes, then correct predictions spread evenly over the split.

    Args:
        predictions: the arrays of predictions.npz; row i belongs to image i of the validation split.
        open_split: opens the dataset; images are shown only if it is the one in `predictions`.

    Returns:
        The number of mistakes and of images, the cards of each kind, and the reason for missing images.
    """
    if predictions is None:
        return {"missing": NO_PREDICTIONS}
    labels, classes, probabilities = (predictions[key] for key in ("labels", "classes", "probabilities"))
    wrong = np.flatnonzero(classes[:, 0] != labels)
    right = np.flatnonzero(classes[:, 0] == labels)
    most_confident = wrong[np.argsort(-probabilities[wrong, 0], kind="stable")][:NUM_MISTAKES]
    spread = evenly_spaced(right, NUM_CORRECT)
    pictures: dict[int, dict[str, Any] | None] = {}
    missing = None
    try:
        source = open_evaluated(open_split, str(predictions["fingerprint"]))
        pictures = {int(index): _thumbnail(source, index) for index in (*most_confident, *spread)}
    except (DataError, MachineError, OSError) as error:
        missing = f"The images cannot be shown: {describe_fault(error) or reason(error)}."

    def card(index: int) -> dict[str, Any]:
        first = int(classes[index, 0])
        of_truth = probabilities[index][classes[index] == labels[index]]
        return {
            "index": int(index),
            "picture": pictures.get(int(index)),
            "predicted": class_name(names, first),
            "label": class_name(names, int(labels[index])),
            "correct": first == labels[index],
            "probability": _percent(probabilities[index, 0]),
            "of_truth": _percent(of_truth[0]) if of_truth.size else None,
        }

    return {
        "missing": missing,
        "count": len(labels),
        "num_mistakes": len(wrong),
        "mistakes": [card(index) for index in most_confident],
        "correct": [card(index) for index in spread],
    }


def _percent(probability: float) -> str:
    percent = 100 * float(probability)
    return f"{percent:.1f} %" if percent < 99.95 else "100 %"


def _thumbnail(source: Any, index: int) -> dict[str, Any] | None:
    """Return the data URI of an image, and whether it is small enough to be scaled up without smoothing."""
    try:
        image = Image.open(io.BytesIO(source[int(index)]["image"]))
        side = min(THUMBNAIL_SIDE, *image.size)
        channels = 1 if image.mode == "L" else 3
        pixels = EvalTransform((side, side), channels=channels, exif_orientation=source.exif_orientation)(image)
    except (DataError, OSError, Image.DecompressionBombError) as error:
        raise_machine_fault(error)
        return None
    image = Image.fromarray(pixels.squeeze(-1) if channels == 1 else pixels)
    small = side < THUMBNAIL_SIDE // 2
    kind, options = ("png", {}) if small else ("jpeg", {"quality": 80})
    return {"uri": data_uri(encode_image(image, kind, optimize=True, **options), kind), "small": small}


def make_confusion(predictions: Mapping[str, np.ndarray] | None, names: list[str]) -> dict[str, Any] | None:
    """Compute the confusion matrix; None for more than `MAX_CONFUSION_CLASSES` classes.

    Returns:
        The class names and, for each true class, its cells: count, share of the class's images, whether correct.
    """
    if predictions is None:
        return None
    labels, first = predictions["labels"], predictions["classes"][:, 0]
    size = max(len(names), int(labels.max()) + 1, int(first.max()) + 1)
    if size > MAX_CONFUSION_CLASSES or min(labels.min(), first.min()) < 0:
        return None
    counts = np.zeros((size, size), int)
    np.add.at(counts, (labels, first), 1)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return {
        "names": [class_name(names, index) for index in range(size)],
        "short": max(map(len, (class_name(names, index) for index in range(size)))) <= 2,
        "rows": [
            [(int(counts[i, j]), round(float(shares[i, j]), 3), i == j) for j in range(size)] for i in range(size)
        ],
    }
