"""The numbers of a study as text, for the terminal and for the page."""

from collections.abc import Mapping
from typing import Any

COLUMNS = (
    "model",
    "top-1, %",
    "95 % interval",
    "difference",
    "95 % interval",
    "could show",
    "parameters",
    "MACs",
    "time per step",
    "memory",
)


def comparison_rows(study: Mapping[str, Any], comparison: Mapping[str, Any]) -> list[list[str]]:
    """Write a row for each model of a comparison, the one without an SSM first: a word for each of `COLUMNS`."""
    twins = {twin["name"]: twin | {"accuracy": clip(twin["accuracy"])} for twin in study["twins"]}
    differences = {difference["twin"]: difference for difference in comparison["differences"]}
    baseline = study["twins"][0]["name"]
    rows = []
    for name in (baseline, *differences):
        twin, difference = twins[name], differences.get(name)
        rows.append(
            [
                twin["title"],
                percent(twin["accuracy"]["mean"]),
                f"{percent(twin['accuracy']['low'])} to {percent(twin['accuracy']['high'])}",
                points(difference["mean"]) if difference else "",
                f"{points(difference['low'])} to {points(difference['high'])}" if difference else "",
                _detectable(difference["detectable"]) if difference else "",
                f"{twin['params']:,}",
                macs(twin["macs"]),
                milliseconds(twin["step_seconds"]),
                mebibytes(twin["memory_bytes"]),
            ]
        )
    return rows


def clip(accuracy: Mapping[str, float]) -> dict[str, float]:
    """Cut an interval of percents off where there are none: by t it may reach beyond 0 and 100."""
    return {**accuracy, "low": max(accuracy["low"], 0.0), "high": min(accuracy["high"], 100.0)}


def percent(value: float) -> str:
    """Write a percentage."""
    return _minus(f"{value:.2f}")


def points(value: float) -> str:
    """Write a difference of percentages, with its sign."""
    return _minus(f"{value:+.2f}")


def macs(value: int) -> str:
    """Write a number of multiply-adds."""
    return f"{value / 1e6:,.2f} M"


def milliseconds(seconds: float) -> str:
    """Write the time of a step."""
    return f"{1e3 * seconds:,.1f} ms"


def mebibytes(value: int) -> str:
    """Write a number of bytes."""
    return f"{value / 2**20:,.1f} MiB"


def _detectable(value: float | None) -> str:
    return "no spread to judge by" if value is None else percent(value)


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")
