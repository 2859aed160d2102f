"""The page of a study: one self-contained HTML file that holds every number of study.json."""

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from matplotlib.ticker import MaxNLocator

from mambaout_jax.pages.render import render
from mambaout_jax.run.config import flatten_config
from mambaout_jax.run.files import write_atomically
from mambaout_jax.study.statistics import CONFIDENCE
from mambaout_jax.study.table import COLUMNS, clip, comparison_rows, percent, points

# Of a picture, in units of its own: it is as wide as its column of the page.
WIDTH, MARGIN, ROW, TOP, BOTTOM = 480, 14, 44, 6, 44


def write_page(workdir: epath.Path, study: Mapping[str, Any]) -> epath.Path:
    """Write study.html into a workdir, whole or not at all, and give its path."""
    num_differences = sum(len(comparison["differences"]) for comparison in study["comparisons"])
    page = render(
        __package__,
        "page.html.jinja",
        study=study,
        workdir=str(workdir),
        columns=COLUMNS,
        comparisons=[_show(study, comparison) for comparison in study["comparisons"]],
        num_differences=num_differences,
        by_chance=round(100 * (1 - CONFIDENCE**num_differences)),
        percent=percent,
        points=points,
        models={
            twin[key]: _words(twin["model"])
            for key, twins in (("name", study["twins"]), ("twin", study["diverged"]))
            for twin in twins
        },
    )
    path = workdir / "study.html"
    write_atomically(path, page)
    return path


def _words(model: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in flatten_config(model).items())


def _show(study: Mapping[str, Any], comparison: Mapping[str, Any]) -> dict[str, Any]:
    """Give the rows of the table and the two pictures of a comparison."""
    twins = {twin["name"]: twin for twin in study["twins"]}
    shown = [study["twins"][0], *(twins[difference["twin"]] for difference in comparison["differences"])]
    accuracy = [{"title": twin["title"], "values": twin["top1"], **clip(twin["accuracy"])} for twin in shown]
    return {
        **comparison,
        "rows": comparison_rows(study, comparison),
        "accuracy": place(accuracy, percent),
        "difference": place(comparison["differences"], points, origin=0.0),
    }


def place(lines: Sequence[Mapping[str, Any]], write: Any, origin: float | None = None) -> dict[str, Any]:
    """Lay out a picture: for each line its interval, its mean and a dot for each value, over one scale.

    Args:
        lines: with title, values, mean, low and high.
        write: how a number is written.
        origin: a value to mark, inside the scale.
    """
    edges = [edge for line in lines for edge in (line["low"], line["high"], *line["values"])]
    edges += [] if origin is None else [origin]
    ticks = MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(min(edges), max(edges)).tolist()
    low, high = ticks[0], ticks[-1]

    def x(value: float) -> float:
        return round(MARGIN + (value - low) / (high - low) * (WIDTH - 2 * MARGIN), 1)

    return {
        "width": WIDTH,
        "height": TOP + ROW * len(lines) + BOTTOM,
        "bottom": TOP + ROW * len(lines),
        "origin": None if origin is None else x(origin),
        "ticks": [(x(tick), f"{tick:g}".replace("-", "\N{MINUS SIGN}")) for tick in ticks],
        "lines": [
            {
                "title": line["title"],
                "text": write(line["mean"]),
                "top": TOP + ROW * index + 15,
                "y": TOP + ROW * index + 29,
                "low": x(line["low"]),
                "high": x(line["high"]),
                "mean": x(line["mean"]),
                "dots": [x(value) for value in line["values"]],
            }
            for index, line in enumerate(lines)
        ],
        "about": "; ".join(
            f"{line['title']} {write(line['mean'])}, interval {write(line['low'])} to {write(line['high'])}"
            for line in lines
        ),
    }
