"""The report of a run: one self-contained HTML page, built from the files of the workdir."""

import json
import math
import statistics
from collections.abc import Mapping
from typing import Any

from etils import epath

from mambaout_jax.checks import as_number
from mambaout_jax.errors import reason
from mambaout_jax.machine import raise_machine_fault
from mambaout_jax.models import find_family, variant_options
from mambaout_jax.pages.render import render
from mambaout_jax.report.curves import WEIGHTS, make_curves
from mambaout_jax.run.errors import RunError
from mambaout_jax.run.files import write_atomically
from mambaout_jax.run.workdir import load_config, load_environment, open_workdir
from mambaout_jax.tasks.api import Labels, Section, Task
from mambaout_jax.tasks.errors import TaskError
from mambaout_jax.weights.options import other_options
from mambaout_jax.words import count


def write_report(workdir: epath.PathLike) -> epath.Path:
    """Write `report.html` into a workdir atomically, and return its path.

    The page has a notice if the run is unfinished or diverged.

    Raises:
        RunError: the workdir has no run, one of its files is damaged, or the page cannot be written.
    """
    workdir = open_workdir(workdir)
    page = _render(workdir)
    path = workdir / "report.html"
    try:
        if not path.exists() or path.read_bytes() != page.encode():  # an unchanged page keeps its time stamp
            write_atomically(path, page)
    except OSError as error:
        raise_machine_fault(error, path, to_write=True)
        raise RunError(f"{path} cannot be written ({reason(error)}); make the folder writable") from None
    return path


def _render(workdir: epath.Path) -> str:
    if not (workdir / "config.json").exists():
        what = "has no config.json" if workdir.exists() else "does not exist"
        raise RunError(f"{workdir} is not the workdir of a run: it {what}; expected the --workdir of a training run")
    config, environment = load_config(workdir), {"labels": {}}
    if (workdir / "environment.json").exists():
        environment = load_environment(workdir)
    if "imported_from" in environment:
        raise RunError(f"{workdir} has imported weights and no run to report; evaluate them with --mode=evaluate")
    results = _read_json(workdir, "results.json")
    train, evals, unreadable = _read_metrics(workdir)
    task, split = config.build_task(), config.data.validation_split
    scores = results or (evals[-1] if evals else {})
    not_shown = ("labels", "command")
    return render(
        __package__,
        "report.html.jinja",
        model=_model_title(config.model),
        dataset=config.data.name,
        split=split,
        workdir=str(workdir),
        facts=_facts(task, results, train, environment),
        headline=_headline(task, scores),
        scores=_scores(task, scores, split),
        notices=_notices(results, train, evals, unreadable),
        curves=make_curves(train, evals, task.metrics),
        validation_loss=any(metric.key == "loss" for metric in task.metrics),
        sections=_sections(task, workdir, environment["labels"], split),
        config={key: _show(value) for key, value in config.values.items()},
        environment={key: _show(value) for key, value in environment.items() if key not in not_shown},
        command=str(environment.get("command") or ""),
    )


def _model_title(options: Mapping[str, Any]) -> str:
    """Return the name of the variant, and whether the model differs from it."""
    own = variant_options(options["name"])
    chosen = {**own, **{option: value for option, value in options.items() if option in own}}
    return f"{options['name']}{' (modified)' if other_options(find_family(options['name']), chosen, own) else ''}"


def _sections(task: Task, workdir: epath.Path, labels: Labels, split: str) -> list[Section]:
    try:
        return task.report_sections(workdir, labels, split)
    except TaskError as error:
        raise RunError(str(error)) from None


def _read_json(workdir: epath.Path, name: str) -> dict[str, Any] | None:
    try:
        content = json.loads((workdir / name).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise_machine_fault(error, workdir / name)
        raise RunError(f"{workdir / name} cannot be read ({reason(error)}); restore it or train again") from None
    if not isinstance(content, dict):
        raise RunError(f"{workdir / name} is not a JSON object; restore it or train again")
    return content


def _read_metrics(workdir: epath.Path) -> tuple[list[dict], list[dict], int]:
    """Return the train and eval records by step, the last one for each step, and the number of damaged lines."""
    try:
        text = (workdir / "metrics.jsonl").read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return [], [], 0
    except OSError as error:
        raise_machine_fault(error, workdir / "metrics.jsonl")
        raise RunError(
            f"{workdir / 'metrics.jsonl'} cannot be read ({reason(error)}); restore it or train again"
        ) from None
    kinds: dict[str, dict[int, dict]] = {"train": {}, "eval": {}}
    unreadable = 0
    for line in filter(str.strip, text.split("\n")):
        try:
            record = json.loads(line)
            step = int(record["step"])
            kinds.setdefault(record["kind"], {})[step] = {**record, "step": step}
        except (ValueError, KeyError, TypeError, OverflowError):
            unreadable += 1
    train, evals = ([kinds[kind][step] for step in sorted(kinds[kind])] for kind in ("train", "eval"))
    return train, evals, unreadable


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


def _facts(task: Task, results: dict | None, train: list[dict], environment: dict) -> dict[str, str]:
    facts = {}
    steps = results.get("steps") if results else train[-1]["step"] if train else None
    if isinstance(steps, int):
        facts["steps"] = f"{steps:,}"
    if results:
        facts["training time"] = _duration(as_number(results.get("train_seconds")))
        facts["input"] = task.describe_input(results)
    speeds = [speed for line in train if math.isfinite(speed := as_number(line.get("images_per_second")))]
    if speeds:
        facts["images per second"] = f"{statistics.median(speeds):,.0f}"
    if "platform" in environment:
        facts["devices"] = f"{environment.get('devices', 1)} x {environment['platform']}"
    return facts


def _headline(task: Task, scores: dict) -> dict[str, str]:
    """Return the primary metric of the best weights."""
    metric = task.metrics[0]
    best = next((scores[weights] for weights in WEIGHTS if isinstance(scores.get(weights), dict)), {})
    return {"value": metric.format(as_number(best.get(metric.key))), "title": f"{metric.unit} {metric.label}".strip()}


def _scores(task: Task, scores: dict, split: str) -> list[dict[str, Any]]:
    """Return the rows of the results table; the first one has the primary metric."""
    return [
        {"weights": label, "text": task.score_text(scores[weights], split)}
        for weights, label in WEIGHTS.items()
        if isinstance(scores.get(weights), dict)
    ]


def _notices(results: dict | None, train: list[dict], evals: list[dict], unreadable: int) -> list[str]:
    notices = []
    bad = [line for line in train if not math.isfinite(as_number(line.get("loss")))]
    if bad:
        rate, norm = (f"{as_number(bad[0].get(key)):g}" for key in ("learning_rate", "grad_norm"))
        notices.append(
            f"This run diverged: at step {bad[0]['step']:,} the loss was not finite (learning rate {rate}, "
            f"gradient norm {norm})."
        )
    if results is None:
        so_far = f"The results are from step {evals[-1]['step']:,}." if evals else "No evaluation yet."
        notices.append(f"This run has not finished. {so_far}")
    if unreadable:
        what = (
            "1 line of metrics.jsonl cannot be read and was"
            if unreadable == 1
            else f"{count(unreadable, 'line')} of metrics.jsonl cannot be read and were"
        )
        notices.append(f"{what} skipped.")
    return notices
