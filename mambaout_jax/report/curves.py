"""The curves of a run: losses, metrics, learning rate and throughput over epochs."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mambaout_jax.checks import as_number
from mambaout_jax.pages.figures import BLUE, GREY, INK, ORANGE, adapt_svg, style_axes
from mambaout_jax.tasks.api import Metric

WEIGHTS = {"ema": "EMA", "raw": "raw"}
MAX_POINTS = 300
STYLES: Mapping[str, Mapping[str, Any]] = {
    "training": {"color": GREY, "linewidth": 1.2},
    "raw": {"color": ORANGE, "linewidth": 1.5, "linestyle": (0, (4, 1.5))},
    "ema": {"color": BLUE, "linewidth": 2},
    "alone": {"color": BLUE, "linewidth": 1.5},
}


class Series(NamedTuple):
    """One line of a plot, with increasing `epochs` and finite `values`."""

    label: str
    style: str
    epochs: np.ndarray
    values: np.ndarray


def _capitalized(label: str) -> str:
    """Return a label with a capital letter, unless it has its own, as "mIoU"."""
    return label.capitalize() if label.islower() else label


def make_curves(train: list[dict], evals: list[dict], metrics: Sequence[Metric]) -> list[dict[str, Any]]:
    """Build the plots of a run, without those that have no data.

    Args:
        train, evals: the lines of metrics.jsonl of each kind, in order of their steps.
        metrics: metrics of the task; the primary one has a plot of its own, and "loss" is drawn with the training loss.

    Returns:
        For each plot its title, unit, whether it is wide, a text description and the SVG.
    """
    waiting = [line | {"percent": 100 * as_number(line.get("input_wait"))} for line in train]

    def tested(metric: str) -> list[Series]:
        return [
            _series(
                f"validation, {label}",
                weights,
                [line | line[weights] for line in evals if isinstance(line.get(weights), dict)],
                metric,
            )
            for weights, label in WEIGHTS.items()
        ]

    primary = metrics[0]
    plots = [
        ("Loss", "", [_series("training", "training", train, "loss"), *tested("loss")]),
        (_capitalized(primary.label), primary.unit, tested(primary.key)),
        ("Learning rate", "", [_series("learning rate", "alone", train, "learning_rate")]),
        ("Throughput", "images per second", [_series("throughput", "alone", train, "images_per_second")]),
        ("Waiting for data", "% of the time", [_series("waiting", "alone", waiting, "percent")]),
    ]
    curves = []
    for number, (title, unit, lines) in enumerate(plots):
        if lines := [line for line in lines if line.epochs.size]:
            wide = number < 2
            ranges = "; ".join(
                f"{line.label} from {line.values[0]:.4g} at epoch {line.epochs[0]:.4g} "
                f"to {line.values[-1]:.4g} at epoch {line.epochs[-1]:.4g}"
                for line in lines
            )
            about = f"{', '.join(filter(None, (title, unit)))}: {ranges}"
            svg = _draw(lines, title, (5.2, 3.0) if wide else (3.5, 2.3))
            curves.append({"title": title, "unit": unit, "wide": wide, "about": about, "svg": svg})
    return curves


def _series(label: str, style: str, lines: list[dict], key: str) -> Series:
    """Return the finite values; more than `MAX_POINTS` are averaged in groups of neighbors."""
    points = np.array([(as_number(line.get("epoch")), as_number(line.get(key))) for line in lines]).reshape(-1, 2)
    points = points[np.isfinite(points).all(1)]
    if len(points) > MAX_POINTS:
        points = np.array([part.mean(0) for part in np.array_split(points, MAX_POINTS)])
    return Series(label, style, points[:, 0], points[:, 1])


def _draw(lines: list[Series], name: str, size: tuple[float, float]) -> Markup:
    # Text remains text in the font of the page, and ids are deterministic.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        for line in lines:
            marker = "o" if len(line.epochs) == 1 else None
            label = f"{line.label}  {line.values[-1]:#.4g}"
            axes.plot(line.epochs, line.values, label=label, marker=marker, **STYLES[line.style])
        style_axes(axes, "epoch")
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
