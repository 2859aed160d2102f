"""Scores as text for the terminal."""

from collections.abc import Iterable, Mapping
from typing import Any

from mambaout_jax.tasks.registry import get_task
from mambaout_jax.words import count

# Text columns, aligned on the left.
_TEXT = ("dataset", "split", "weights", "input")


def format_scores(record: Mapping[str, Any]) -> str:
    """Return the results of `train` or `evaluate` as a table with a row for each set and kind of weights.

    Remarks, such as the number of excluded images, follow below the table.
    """
    sets = record.get("sets", [record])
    rows = [
        row for scored in sets for weights in ("raw", "ema") if weights in scored for row in [_row(scored, weights)]
    ]
    columns = [column for column in rows[0] if any(row[column] for row in rows)]
    widths = {column: max(len(column), *(len(row[column]) for row in rows)) for column in columns}
    lines = [
        "  ".join(
            row[column].ljust(widths[column]) if column in _TEXT else row[column].rjust(widths[column])
            for column in columns
        ).rstrip()
        for row in ({column: column for column in columns}, *rows)
    ]
    description = [f"weights: {record['weights']}"] if "weights" in record else []
    return "\n".join([*lines, *description, *(line for scored in sets for line in _remarks(scored))])


def _row(scored: Mapping[str, Any], weights: str) -> dict[str, str]:
    task, scores = get_task(scored["task"]), scored[weights]
    excluded = scored["skipped"] + scored["unlabeled"]
    return {
        "dataset": scored["dataset"],
        "split": scored["split"],
        "weights": weights,
        "input": task.describe_input(scored),
        **{metric.title: metric.format(scores[metric.key]) for metric in task.metrics},
        "images": f"{scores['count']:,}",
        "excluded": f"{excluded:,}" if excluded else "",
    }


def _remarks(scored: Mapping[str, Any]) -> Iterable[str]:
    name = scored["dataset"]
    if scored["unlabeled"]:
        yield f"{name}: {count(scored['unlabeled'], 'image')} without a target excluded"
    if scored["skipped"]:
        yield f"{name}: {count(scored['skipped'], 'unreadable image')} excluded"
    for remark in get_task(scored["task"]).remarks(scored):
        yield f"{name}: {remark}"
