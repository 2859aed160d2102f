"""The page of a study: one self-contained HTML file with every number of study.json."""

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from matplotlib.ticker import MaxNLocator

from mambaout_jax.pages.render import render
from mambaout_jax.run.config import flatten_config
from mambaout_jax.run.files import write_atomically
from mambaout_jax.study.statistics import CONFIDENCE
from mambaout_jax.study.table import clip, columns, comparison_rows, percent, points

# The layout of a figure in SVG units; it is scaled to the width of its column.
WIDTH, MARGIN, ROW, TOP, BOTTOM = 480, 14, 44, 6, 44


def write_page(workdir: epath.Path, study: Mapping[str, Any]) -> epath.Path:
    """Write study.html into a workdir atomically and return its path."""
    num_differences = sum(len(comparison["differences"]) for comparison in study["comparisons"])
    page = render(
        __package__,
        "page.html.jinja",
        study=study,
        workdir=str(workdir),
        columns=columns(study),
        comparisons=[_show(study, comparison) for comparison in study["comparisons"]],
        num_differences=num_differences,
        false_positive_rate=round(100 * (1 - CONFIDENCE**num_differences)),
        percent=percent,
        points=points,
        models={
            variant[key]: _format_options(variant["model"])
            for key, variants in (("name", study["variants"]), ("variant", study["diverged"]))
            for variant in variants
        },
    )
    path = workdir / "study.html"
    write_atomically(path, page)
    return path


def _format_options(model: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in flatten_config(model).items())


def _show(study: Mapping[str, Any], comparison: Mapping[str, Any]) -> dict[str, Any]:
    """Return a comparison with the rows of its table and its two figures."""
    variants = {variant["name"]: variant for variant in study["variants"]}
    shown = [study["variants"][0], *(variants[difference["variant"]] for difference in comparison["differences"])]
    scores = [
        {"title": variant["title"], "values": variant["scores"], **clip(variant["interval"], study["metric"])}
        for variant in shown
    ]
    return {
        **comparison,
        "rows": comparison_rows(study, comparison),
        "interval": lay_out(scores, percent),
        "difference": lay_out(comparison["differences"], points, origin=0.0),
    }


def lay_out(lines: Sequence[Mapping[str, Any]], format_value: Any, origin: float | None = None) -> dict[str, Any]:
    """Compute the layout of a figure: for each line its interval, its mean and a dot per value, on one scale.

    Args:
        lines: with title, values, mean, low and high.
        format_value: formats a number as text.
        origin: a value to mark; the scale includes it.
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
                "text": format_value(line["mean"]),
                "top": TOP + ROW * index + 15,
                "y": TOP + ROW * index + 29,
                "low": x(line["low"]),
                "high": x(line["high"]),
                "mean": x(line["mean"]),
                "dots": [x(value) for value in line["values"]],
            }
            for index, line in enumerate(lines)
        ],
        "description": "; ".join(
            "{} {}, interval {} to {}".format(
                line["title"], *(format_value(line[key]) for key in ("mean", "low", "high"))
            )
            for line in lines
        ),
    }
