"""The numbers of a study as text, for the terminal and for the page."""

from collections.abc import Mapping
from typing import Any

COLUMNS = (
    "model",
    "top-1, %",
    "95 % interval",
    "difference",
    "95 % interval",
    "MDE",
    "parameters",
    "MACs",
    "time per step",
    "memory",
)


def comparison_rows(study: Mapping[str, Any], comparison: Mapping[str, Any]) -> list[list[str]]:
    """Return a row of text per model of a comparison, the baseline first, with a cell for each of `COLUMNS`."""
    variants = {variant["name"]: variant | {"accuracy": clip(variant["accuracy"])} for variant in study["variants"]}
    differences = {difference["variant"]: difference for difference in comparison["differences"]}
    baseline = study["variants"][0]["name"]
    rows = []
    for name in (baseline, *differences):
        variant, difference = variants[name], differences.get(name)
        rows.append(
            [
                variant["title"],
                percent(variant["accuracy"]["mean"]),
                f"{percent(variant['accuracy']['low'])} to {percent(variant['accuracy']['high'])}",
                points(difference["mean"]) if difference else "",
                f"{points(difference['low'])} to {points(difference['high'])}" if difference else "",
                _effect(difference["minimum_detectable_effect"]) if difference else "",
                f"{variant['params']:,}",
                macs(variant["macs"]),
                milliseconds(variant["step_seconds"]),
                mebibytes(variant["memory_bytes"]),
            ]
        )
    return rows


def clip(accuracy: Mapping[str, float]) -> dict[str, float]:
    """Clip an interval of percentages to 0 and 100, which an interval by t may exceed."""
    return {**accuracy, "low": max(accuracy["low"], 0.0), "high": min(accuracy["high"], 100.0)}


def percent(value: float) -> str:
    """Format a percentage."""
    return _minus(f"{value:.2f}")


def points(value: float) -> str:
    """Format a difference of percentages, with its sign."""
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


def _effect(value: float | None) -> str:
    return "no spread" if value is None else percent(value)


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")
