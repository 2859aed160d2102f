"""What the report shows rather than says: curves, test images with their predictions, the confusion matrix."""

import base64
import io
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from mambaout_jax.data import DataError, EvalTransform
from mambaout_jax.data.prepare import ensure_prepared
from mambaout_jax.tasks.classification.source import open_source

WEIGHTS = {"ema": "EMA", "raw": "raw"}
NUM_MISTAKES, NUM_CORRECT = 32, 16
MAX_CONFUSION_CLASSES = 50
THUMBNAIL_SIDE = 112
MAX_POINTS = 300

# Matplotlib draws with these colours; the page's style sheet gives each a value for light, for dark and for print.
# Blue and orange stay apart for every kind of colour vision, and no two lines differ by colour alone.
INK, RULE, BLUE, ORANGE, GREY = "#111112", "#dddddc", "#0072b2", "#d55e00", "#777776"
CSS_COLOURS = {INK: "--ink", RULE: "--rule", BLUE: "--blue", ORANGE: "--orange", GREY: "--muted"}
STYLES: Mapping[str, Mapping[str, Any]] = {
    "training": {"color": GREY, "linewidth": 1.2},
    "raw": {"color": ORANGE, "linewidth": 1.5, "linestyle": (0, (4, 1.5))},
    "ema": {"color": BLUE, "linewidth": 2},
    "alone": {"color": BLUE, "linewidth": 1.5},
}


class Series(NamedTuple):
    """Hold one line of a plot: `epochs` rise and `values` are finite."""

    label: str
    style: str
    epochs: np.ndarray
    values: np.ndarray


def make_curves(train: list[dict], evals: list[dict]) -> list[dict[str, Any]]:
    """Draw what there is to draw of a run's metrics.

    Args:
        train, evals: the lines of metrics.jsonl of each kind, rising in step.

    Returns:
        For each picture its title, unit, a description in words and the SVG.
    """
    waiting = [line | {"percent": 100 * _number(line.get("input_wait"))} for line in train]
    tested = {
        metric: [
            _series(f"test, {label}", weights, [line | line[weights] for line in evals if weights in line], metric)
            for weights, label in WEIGHTS.items()
        ]
        for metric in ("loss", "top1")
    }
    plots = [
        ("Loss", "cross entropy", [_series("training", "training", train, "loss"), *tested["loss"]]),
        ("Accuracy", "top-1, %", tested["top1"]),
        ("Learning rate", "of the optimizer", [_series("learning rate", "alone", train, "learning_rate")]),
        ("Throughput", "images per second", [_series("throughput", "alone", train, "images_per_second")]),
        ("Waiting for data", "% of the time", [_series("waiting", "alone", waiting, "percent")]),
    ]
    curves = []
    for title, unit, lines in plots:
        if lines := [line for line in lines if line.epochs.size]:
            wide = title in ("Loss", "Accuracy")
            about = "; ".join(
                f"{line.label} from {line.values[0]:.4g} at epoch {line.epochs[0]:.4g} "
                f"to {line.values[-1]:.4g} at epoch {line.epochs[-1]:.4g}"
                for line in lines
            )
            svg = _draw(lines, title, (5.2, 3.0) if wide else (3.5, 2.3))
            curves.append(
                {"title": title, "unit": unit, "wide": wide, "about": f"{title}, {unit}: {about}", "svg": svg}
            )
    return curves


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _series(label: str, style: str, lines: list[dict], key: str) -> Series:
    """Take the finite values; where there are more than can be told apart, the means of neighbours."""
    points = np.array([(_number(line.get("epoch")), _number(line.get(key))) for line in lines]).reshape(-1, 2)
    points = points[np.isfinite(points).all(1)]
    if len(points) > MAX_POINTS:
        points = np.array([part.mean(0) for part in np.array_split(points, MAX_POINTS)])
    return Series(label, style, points[:, 0], points[:, 1])


def _draw(lines: list[Series], name: str, size: tuple[float, float]) -> Markup:
    # Text stays text, in the page's own font, and ids are the same for the same run.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        for line in lines:
            marker = "o" if len(line.epochs) == 1 else None
            label = f"{line.label}  {line.values[-1]:#.4g}"
            axes.plot(line.epochs, line.values, label=label, marker=marker, **STYLES[line.style])
        restrain(axes, "epoch")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.get_offset_text().set_color(GREY)
        if lines[0].style == "alone":
            axes.set_ylim(bottom=0)
        if len(lines) > 1:
            axes.legend(frameon=False, labelcolor=INK, handlelength=2.2)
        svg = io.StringIO()
        figure.savefig(svg, format="svg", transparent=True)
    return adapt_svg(svg.getvalue(), name.lower().replace(" ", "-"))


def restrain(axes: Axes, across: str) -> None:
    """Leave of a plot's frame what is needed, in the page's colours, and say what runs across."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GREY)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelcolor=GREY)
    axes.set_xlabel(across, color=GREY)


def adapt_svg(svg: str, name: str) -> Markup:
    """Make a picture of matplotlib's part of a page: ids of its own, the page's colours, its column's width."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)  # it holds the date
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    for colour, variable in CSS_COLOURS.items():
        svg = svg.replace(colour, f"var({variable})")
    return Markup(svg.replace("<svg", '<svg aria-hidden="true"', 1))


def make_gallery(
    predictions: Mapping[str, np.ndarray] | None, names: list[str], data: Mapping[str, Any]
) -> dict[str, Any]:
    """Choose test images and say what was predicted: the surest mistakes, then correct ones from all over the split.

    Args:
        predictions: what predictions.npz holds; row i belongs to image i of the validation split.
        data: the config's part about the dataset; it is opened, and shown only if its labels are those predicted.

    Returns:
        The number of mistakes and of images, the cards to show of each kind, and why there are no pictures.
    """
    if predictions is None:
        return {"missing": "There are no predictions yet: they are written when a run ends."}
    labels, classes, probabilities = (predictions[key] for key in ("labels", "classes", "probabilities"))
    wrong = np.flatnonzero(classes[:, 0] != labels)
    right = np.flatnonzero(classes[:, 0] == labels)
    surest = wrong[np.argsort(-probabilities[wrong, 0], kind="stable")][:NUM_MISTAKES]
    spread = right[np.unique(np.linspace(0, len(right) - 1, min(NUM_CORRECT, len(right))).round().astype(int))]
    try:
        source, missing = _open_same(data, labels, np.concatenate([surest, spread])), None
    except (DataError, OSError) as error:
        source, missing = None, f"The pictures cannot be shown: {error}."

    def card(index: int) -> dict[str, Any]:
        first = int(classes[index, 0])
        of_truth = probabilities[index][classes[index] == labels[index]]
        return {
            "index": int(index),
            "picture": None if source is None else _thumbnail(source, index),
            "predicted": _name(names, first),
            "label": _name(names, int(labels[index])),
            "correct": first == labels[index],
            "probability": _percent(probabilities[index, 0]),
            "of_truth": _percent(of_truth[0]) if of_truth.size else None,
        }

    return {
        "missing": missing,
        "count": len(labels),
        "num_mistakes": len(wrong),
        "mistakes": [card(index) for index in surest],
        "correct": [card(index) for index in spread],
    }


def _open_same(data: Mapping[str, Any], labels: np.ndarray, shown: np.ndarray):
    if not data.get("name") or not data.get("validation_split"):
        raise DataError("the config names no dataset")
    ensure_prepared(data["name"], data.get("data_dir"))
    source = open_source(data["name"], data["validation_split"], data.get("data_dir"))
    if len(source) != len(labels) or any(source[int(index)]["label"] != labels[index] for index in shown):
        raise DataError("the dataset that is prepared here is not the one that was evaluated")
    return source


def _name(names: list[str], index: int) -> str:
    return names[index] if 0 <= index < len(names) else str(index)


def _percent(probability: float) -> str:
    percent = 100 * float(probability)
    return f"{percent:.1f} %" if percent < 99.95 else "100 %"


def _thumbnail(source: Any, index: int) -> dict[str, Any] | None:
    """Give an image's data URI, and whether it is so small that its pixels should stay visible."""
    try:
        image = Image.open(io.BytesIO(source[int(index)]["image"]))
        side = min(THUMBNAIL_SIDE, *image.size)
        channels = 1 if image.mode == "L" else 3
        pixels = EvalTransform((side, side), channels=channels)(image)
    except (DataError, OSError, Image.DecompressionBombError):
        return None
    image = Image.fromarray(pixels.squeeze(-1) if channels == 1 else pixels)
    small = side < THUMBNAIL_SIDE // 2
    file = io.BytesIO()
    image.save(file, "PNG" if small else "JPEG", optimize=True, **({} if small else {"quality": 80}))
    kind = "png" if small else "jpeg"
    return {"uri": f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}", "small": small}


def make_confusion(predictions: Mapping[str, np.ndarray] | None, names: list[str]) -> dict[str, Any] | None:
    """Count how often each class was taken for each; None where there are too many classes to look at.

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
        "names": [_name(names, index) for index in range(size)],
        "short": max(map(len, (_name(names, index) for index in range(size)))) <= 2,
        "rows": [
            [(int(counts[i, j]), round(float(shares[i, j]), 3), i == j) for j in range(size)] for i in range(size)
        ],
    }
