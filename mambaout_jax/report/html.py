"""The report: one self-contained HTML page made from the files of a workdir alone."""

import io
import json
import math
import statistics
import zipfile
from typing import Any

import numpy as np
from etils import epath

from mambaout_jax.report.page import render
from mambaout_jax.report.pictures import WEIGHTS, make_confusion, make_curves, make_gallery
from mambaout_jax.run.config import flatten_config
from mambaout_jax.run.errors import RunError
from mambaout_jax.run.files import write_atomically
from mambaout_jax.run.workdir import open_workdir


def write_report(workdir: epath.PathLike) -> epath.Path:
    """Write `report.html` into a workdir, whole or not at all, and give its path.

    A run that is unfinished, was resumed or diverged gets a page that says so.

    Raises:
        RunError: the workdir holds no run, one of its files is damaged, or the page cannot be written.
    """
    workdir = open_workdir(workdir)
    page = _render(workdir)
    path = workdir / "report.html"
    try:
        write_atomically(path, page)
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error}); make the folder writable or free some space") from None
    return path


def _render(workdir: epath.Path) -> str:
    config = _read_json(workdir, "config.json")
    if config is None:
        what = "has no config.json" if workdir.exists() else "does not exist"
        raise RunError(f"{workdir} holds no run: it {what}; name the --workdir of a training run")
    environment = _read_json(workdir, "environment.json") or {}
    if "imported_from" in environment:
        raise RunError(f"{workdir} holds imported weights, and no run to report on; evaluate them by --mode=evaluate")
    results = _read_json(workdir, "results.json")
    train, evals, unreadable = _read_metrics(workdir)
    predictions = _read_predictions(workdir)
    names = [str(name) for name in environment.get("class_names", ())]
    data = config.get("data", {})
    return render(
        __package__,
        "report.html.jinja",
        model=config.get("model", {}).get("name", "A model"),
        dataset=data.get("name", environment.get("dataset", "an unnamed dataset")),
        split=data.get("validation_split", "validation"),
        workdir=str(workdir),
        facts=_facts(results, train, environment),
        scores=_scores(results or (evals[-1] if evals else {})),
        notices=_notices(results, train, evals, unreadable),
        curves=make_curves(train, evals),
        gallery=make_gallery(predictions, names, data),
        confusion=make_confusion(predictions, names),
        config={key: _show(value) for key, value in flatten_config(config).items()},
        environment={key: _show(value) for key, value in environment.items() if key not in ("class_names", "command")},
        command=environment.get("command"),
    )


def _read_json(workdir: epath.Path, name: str) -> dict[str, Any] | None:
    try:
        content = json.loads((workdir / name).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise RunError(f"{workdir / name} cannot be read ({error}); restore it or train again") from None
    if not isinstance(content, dict):
        raise RunError(f"{workdir / name} holds no JSON object; restore it or train again")
    return content


def _read_metrics(workdir: epath.Path) -> tuple[list[dict], list[dict], int]:
    """Give the train and eval lines, rising in step, the later of two with one step; and how many cannot be read."""
    try:
        text = (workdir / "metrics.jsonl").read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return [], [], 0
    except OSError as error:
        raise RunError(f"{workdir / 'metrics.jsonl'} cannot be read ({error})") from None
    kinds: dict[str, dict[int, dict]] = {"train": {}, "eval": {}}
    unreadable = 0
    for line in filter(str.strip, text.split("\n")):
        try:
            record = json.loads(line)
            kinds.setdefault(record["kind"], {})[int(record["step"])] = record
        except (ValueError, KeyError, TypeError):
            unreadable += 1
    train, evals = ([kinds[kind][step] for step in sorted(kinds[kind])] for kind in ("train", "eval"))
    return train, evals, unreadable


def _read_predictions(workdir: epath.Path) -> dict[str, np.ndarray] | None:
    path = workdir / "predictions.npz"
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            predictions = {name: arrays[name] for name in ("labels", "classes", "probabilities")}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(f"{path} cannot be read ({error}); evaluate the workdir again") from None
    labels, classes, probabilities = predictions.values()
    if labels.ndim != 1 or classes.shape != probabilities.shape or classes.shape[:1] != labels.shape:
        raise RunError(f"{path} holds arrays that do not belong together; evaluate the workdir again")
    return predictions if labels.size else None


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _show(value: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, list | tuple):
        return ", ".join(map(_show, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 120:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _facts(results: dict | None, train: list[dict], environment: dict) -> dict[str, str]:
    facts = {}
    if steps := (results or (train[-1] if train else {})).get("steps" if results else "step"):
        facts["steps"] = f"{steps:,}"
    if results:
        facts["training time"] = _duration(_number(results.get("train_seconds")))
        facts["input"] = " x ".join(map(str, results.get("input_size", ("unknown",)))) + " px"
    speeds = [speed for line in train if math.isfinite(speed := _number(line.get("images_per_second")))]
    if speeds:
        facts["images per second"] = f"{statistics.median(speeds):,.0f}"
    if "platform" in environment:
        facts["ran on"] = f"{environment.get('devices', 1)} x {environment['platform']}"
    return facts


def _scores(record: dict) -> list[dict[str, str]]:
    """Make the rows of the table of results; the first one is the headline."""
    return [_score(WEIGHTS[weights], record[weights]) for weights in WEIGHTS if isinstance(record.get(weights), dict)]


def _score(weights: str, score: dict) -> dict[str, str]:
    top1, count = _number(score.get("top1")), int(score.get("count", 0))
    return {
        "weights": weights,
        "top1": f"{top1:.2f}",
        "interval": _interval(top1, count),
        "top5": f"{_number(score.get('top5')):.2f}",
        "loss": f"{_number(score.get('loss')):.4f}",
        "count": f"{count:,}",
        "wrong": f"{round(count * (1 - top1 / 100)):,}" if math.isfinite(top1) else "unknown",
    }


def _interval(percent: float, count: int) -> str:
    """Give the 95 % interval of an accuracy that was measured on `count` images.

    Reference: Wilson, "Probable inference, the law of succession, and statistical inference" (1927).
    """
    if not count or not math.isfinite(percent):
        return "unknown"
    p, z = percent / 100, 1.96
    middle = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return f"{100 * (middle - half):.2f} to {100 * (middle + half):.2f}"


def _notices(results: dict | None, train: list[dict], evals: list[dict], unreadable: int) -> list[str]:
    notices = []
    bad = [line for line in train if not math.isfinite(_number(line.get("loss")))]
    if bad:
        rate, norm = (f"{_number(bad[0].get(key)):g}" for key in ("learning_rate", "grad_norm"))
        notices.append(
            f"This run diverged: at step {bad[0]['step']:,} the loss was no finite number (learning rate {rate}, "
            f"gradient norm {norm})."
        )
    if results is None:
        so_far = f"The numbers are those of step {evals[-1]['step']:,}." if evals else "Nothing was evaluated yet."
        notices.append(f"This run has not finished. {so_far}")
    if unreadable:
        what = (
            "1 line of metrics.jsonl cannot be read and is"
            if unreadable == 1
            else f"{unreadable} lines of metrics.jsonl cannot be read and are"
        )
        notices.append(f"{what} left out.")
    return notices
