"""The numbers of a study as text, for the terminal and for the page."""

import math
from collections.abc import Mapping
from typing import Any

from mambaout_jax.tasks.api import Metric

_COLUMNS = (
    "95 % interval",
    "difference",
    "95 % interval",
    "MDE",
    "parameters",
    "MACs",
    "time per step",
    "memory",
)


def columns(study: Mapping[str, Any]) -> list[str]:
    """Return the titles of the columns of `comparison_rows`."""
    return ["model", Metric(**study["metric"]).title, *_COLUMNS]


def comparison_rows(study: Mapping[str, Any], comparison: Mapping[str, Any]) -> list[list[str]]:
    """Return a row of text per model of a comparison, the baseline first, with a cell for each of `columns`."""
    variants = {
        variant["name"]: variant | {"interval": clip(variant["interval"], study["metric"])}
        for variant in study["variants"]
    }
    differences = {difference["variant"]: difference for difference in comparison["differences"]}
    baseline = study["variants"][0]["name"]
    rows = []
    for name in (baseline, *differences):
        variant, difference = variants[name], differences.get(name)
        rows.append(
            [
                variant["title"],
                percent(variant["interval"]["mean"]),
                f"{percent(variant['interval']['low'])} to {percent(variant['interval']['high'])}",
                points(difference["mean"]) if difference else "",
                _range(difference, study["metric"]) if difference else "",
                _effect(difference["minimum_detectable_effect"], study["metric"]) if difference else "",
                f"{variant['params']:,}",
                macs(variant["macs"]),
                milliseconds(variant["step_seconds"]),
                mebibytes(variant["memory_bytes"]),
            ]
        )
    return rows


def clip(interval: Mapping[str, float], metric: Mapping[str, Any]) -> dict[str, float]:
    """Clip an interval of percentages to 0 and 100, which Student's t may exceed."""
    if metric["unit"] != "%":
        return dict(interval)
    return {**interval, "low": max(interval["low"], 0.0), "high": min(interval["high"], 100.0)}


def percent(value: float) -> str:
    """Format a score."""
    return _minus(f"{value:.2f}")


def points(value: float) -> str:
    """Format a difference of scores, with its sign."""
    return _minus(f"{value:+.2f}")


def macs(value: int) -> str:
    """Format a number of multiply-adds."""
    return f"{value / 1e6:,.2f} M"


def milliseconds(seconds: float) -> str:
    """Format the time of a step."""
    return f"{1e3 * seconds:,.1f} ms"


def mebibytes(value: int) -> str:
    """Format a number of bytes."""
    return f"{value / 2**20:,.1f} MiB"


def _range(difference: Mapping[str, Any], metric: Mapping[str, Any]) -> str:
    limit = 100.0 if metric["unit"] == "%" else math.inf
    return f"{points(max(difference['low'], -limit))} to {points(min(difference['high'], limit))}"


def _effect(value: float | None, metric: Mapping[str, Any]) -> str:
    if value is None:
        return "no spread"
    return "> 100" if metric["unit"] == "%" and value > 100 else percent(value)


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")
