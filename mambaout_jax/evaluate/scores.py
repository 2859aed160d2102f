"""Scores as a person reads them."""

from collections.abc import Iterable
from typing import Any

# Columns of words, which are aligned on the left.
_WORDS = ("dataset", "split", "weights", "input")


def format_scores(record: dict[str, Any]) -> str:
    """Lay out what `train` or `evaluate` gives as a table, a row for each set and weights.

    What was left out is told below it.
    """
    sets = record.get("sets", [record])
    rows = [
        {
            "dataset": scored["dataset"],
            "split": scored["split"],
            "weights": weights,
            "input": describe_eval_transform(scored),
            "top-1 %": f"{row['top1']:.2f}",
            "top-5 %": f"{row['top5']:.2f}",
            "loss": f"{row['loss']:.4f}",
            "images": f"{row['count']:,}",
            "left out": f"{left_out:,}" if (left_out := scored["skipped"] + scored["unlabelled"]) else "",
        }
        for scored in sets
        for weights in ("raw", "ema")
        if (row := scored.get(weights))
    ]
    columns = [column for column in rows[0] if any(row[column] for row in rows)]
    widths = {column: max(len(column), *(len(row[column]) for row in rows)) for column in columns}
    lines = [
        "  ".join(
            row[column].ljust(widths[column]) if column in _WORDS else row[column].rjust(widths[column])
            for column in columns
        ).rstrip()
        for row in ({column: column for column in columns}, *rows)
    ]
    origin = [f"weights: {record['weights']}"] if "weights" in record else []
    return "\n".join([*lines, *origin, *(line for scored in sets for line in _remarks(scored))])


def describe_eval_transform(scored: dict[str, Any]) -> str:
    """Say at what input size and crop an image is evaluated."""
    return f"{'x'.join(map(str, scored['input_size']))}, crop {scored['crop_pct']} {scored['crop_mode']}"


def _remarks(scored: dict[str, Any]) -> Iterable[str]:
    name = scored["dataset"]
    if scored["unlabelled"]:
        yield f"{name}: left out for want of a label: {scored['unlabelled']:,}"
    if scored["skipped"]:
        yield f"{name}: left out because they do not decode: {scored['skipped']:,}"
    if scored["class_mask_of"] < scored["num_classes"]:
        yield f"{name}: ranked among the {scored['class_mask_of']} of {scored['num_classes']} classes that occur in it"
