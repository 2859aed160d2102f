"""What the runs of a study found, in numbers and in words that say no more than these."""

import json
import statistics
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from etils import epath

from mambaout_jax.run.errors import RunError
from mambaout_jax.study.statistics import compare, detectable_difference, holm, interval, p_value
from mambaout_jax.study.twins import COMPARISONS, MIXERS, Twin

# How many parameters the twins of a comparison have; the one that says more comes first.
SIZES: Mapping[str, str] = MappingProxyType({"matched": "with as many parameters", "removed": "with as many channels"})
DIVERGED = "diverged.json"
LEFT_OUT = "Left out, as a run of it diverged:"


class Divergence(NamedTuple):
    """Hold why a twin is left out: the repeat whose run diverged, and what that run said."""

    repeat: int
    reason: str


class Outcome(NamedTuple):
    """Hold what a run gave.

    Args:
        top1: percent, at the last step, of the averaged weights where an average is kept.
        step_seconds: a time per step for each record of its metrics, waiting for data included.
    """

    top1: float
    steps: int
    step_seconds: tuple[float, ...]


def read_outcome(folder: epath.Path, batch_size: int) -> Outcome:
    """Read what a finished run wrote.

    Raises:
        RunError: its files are not there, or are something else.
    """
    try:
        results = json.loads((folder / "results.json").read_text())
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines if line.endswith("}")]  # a kill may have cut one
        seconds = [batch_size / line["images_per_second"] for line in records if line["kind"] == "train"]
        top1 = results["ema" if "ema" in results else "raw"]["top1"]
        return Outcome(top1, results["steps"], tuple(seconds))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{folder} does not hold what a finished run writes ({error!r}); remove it, the same command trains again"
        ) from error


def read_divergence(folder: epath.Path, repeat: int) -> Divergence | None:
    """Read what was written down when a run diverged; None if it did not.

    Raises:
        RunError: it is something else.
    """
    record = folder / DIVERGED
    if not record.exists():
        return None
    try:
        return Divergence(repeat, str(json.loads(record.read_text())["reason"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{record} is not what a study writes ({error!r}); remove {folder} to train again") from error


def find(
    twins: Sequence[Twin],
    outcomes: Mapping[str, Sequence[Outcome]],
    memory: Mapping[str, int],
    chance: float,
    diverged: Mapping[str, Divergence],
) -> dict[str, Any]:
    """Put together what study.json holds beside what was asked.

    Args:
        twins: the one without an SSM first, which did not diverge.
        outcomes: by the twins' names, one for each repeat; of those that diverged none is read.
        memory: bytes, by the twins' names.
        chance: top-1 of guessing, in percent.
        diverged: by the names of the twins that are to be left out.
    """
    left_out = [_leave_out(twin, diverged[twin.name]) for twin in twins if twin.name in diverged]
    twins = [twin for twin in twins if twin.name not in diverged]
    baseline, *_ = twins
    top1 = {twin.name: [outcome.top1 for outcome in outcomes[twin.name]] for twin in twins}
    comparisons = []
    for name, (about, _) in COMPARISONS.items():
        differences = [
            _difference(twin, [own - base for own, base in zip(top1[twin.name], top1[baseline.name], strict=True)])
            for twin in twins[1:]
            if name in twin.comparisons
        ]
        verdict = _sum_up(differences, [twin for twin in left_out if name in twin["comparisons"]])
        comparisons.append({"name": name, "about": about, "verdict": verdict, "differences": differences})
    tested = [
        difference for comparison in comparisons for difference in comparison["differences"] if difference["has_ssm"]
    ]
    holding = holm([p_value(difference["values"]) for difference in tested])
    held = [difference["twin"] for difference, holds in zip(tested, holding, strict=True) if holds]
    described = [
        {
            "name": twin.name,
            "title": MIXERS[twin.mixer].title,
            "comparisons": list(twin.comparisons),
            "model": twin.model,
            "top1": top1[twin.name],
            "accuracy": interval(top1[twin.name])._asdict(),
            "params": twin.params,
            "macs": twin.macs,
            "step_seconds": statistics.median(s for outcome in outcomes[twin.name] for s in outcome.step_seconds),
            "memory_bytes": memory[twin.name],
        }
        for twin in twins
    ]
    missing = [f"{twin['title']} {SIZES[name]}" for twin in left_out if twin["has_ssm"] for name in twin["comparisons"]]
    answer = _answer(described, comparisons, held, chance)
    return {
        "answer": f"{answer} {LEFT_OUT} {', '.join(missing)}." if tested and missing else answer,
        "held": held,
        "twins": described,
        "comparisons": comparisons,
        "diverged": left_out,
    }


def _leave_out(twin: Twin, divergence: Divergence) -> dict[str, Any]:
    return {
        "twin": twin.name,
        "title": MIXERS[twin.mixer].title,
        "has_ssm": MIXERS[twin.mixer].has_ssm,
        "comparisons": list(twin.comparisons),
        "model": twin.model,
        **divergence._asdict(),
    }


def _difference(twin: Twin, values: list[float]) -> dict[str, Any]:
    return {
        "twin": twin.name,
        "title": MIXERS[twin.mixer].title,
        "has_ssm": MIXERS[twin.mixer].has_ssm,
        "values": values,
        **interval(values)._asdict(),
        "detectable": detectable_difference(values),
        "told_apart": compare(values),
    }


def _sum_up(differences: Sequence[Mapping[str, Any]], left_out: Sequence[Mapping[str, Any]]) -> str:
    words = {1: "Better than", -1: "Worse than", 0: "Not told apart from"}
    sentences = [
        f"{word} convolution alone: {', '.join(titles)}."
        for told, word in words.items()
        if (titles := [difference["title"] for difference in differences if difference["told_apart"] == told])
    ]
    if left_out:
        missing = [f"{twin['title']}, in repeat {twin['repeat']}" for twin in left_out]
        sentences.append(f"{LEFT_OUT} {'; '.join(missing)}.")
    return " ".join(sentences)


def _answer(
    twins: Sequence[Mapping[str, Any]], comparisons: Sequence[Mapping[str, Any]], held: Sequence[str], chance: float
) -> str:
    """Answer whether the data need an SSM: in words of what holds over all tests, and of what could have."""
    with_ssm = {
        comparison["name"]: [difference for difference in comparison["differences"] if difference["has_ssm"]]
        for comparison in comparisons
    }
    tested = [difference for differences in with_ssm.values() for difference in differences]
    if not tested:
        return "Every SSM diverged; nothing can be said of it."
    if all(twin["accuracy"]["low"] <= chance for twin in twins):
        return (
            f"No twin is told apart from guessing, which gives {chance:.2f} %, with {len(twins[0]['top1'])} repeats; "
            "take more seeds. Nothing can be said of the SSM."
        )
    better, worse = (_name_held(with_ssm, held, told) for told in (1, -1))
    others = [difference for difference in tested if difference["twin"] not in held]
    own = {difference["told_apart"] for difference in others}
    sentences = []
    if better:
        sentences.append(f"Better than convolution alone {better}.")
        matched = [difference for difference in with_ssm["matched"] if difference["told_apart"] > 0]
        if not matched:
            sentences.append("With as many parameters, no SSM is told apart from convolution alone as better.")
        elif not any(difference["twin"] in held for difference in matched):
            sentences.append(f"With as many parameters, none holds over all {len(tested)} tests.")
    elif others:
        sentences.append("No SSM did better than convolution alone by more than chance explains.")
    if worse:
        sentences.append(f"Worse than convolution alone {worse}.")
    if words := " or ".join(word for told, word in ((1, "better"), (-1, "worse")) if told in own):
        sentences.append(
            f"An SSM that is called {words} below and not here is so by a test of its own, of which there are "
            f"{len(tested)}."
        )
    if others and not better:
        sentences.append(_bound(others, len(tested), "none of the others" if worse else "none"))
    return " ".join(sentences)


def _name_held(with_ssm: Mapping[str, Sequence[Mapping[str, Any]]], held: Sequence[str], told: int) -> str:
    parts = [
        f"{size}: {', '.join(titles)}"
        for name, size in SIZES.items()
        if (titles := [own["title"] for own in with_ssm[name] if own["told_apart"] == told and own["twin"] in held])
    ]
    return "; ".join(parts)


def _bound(differences: Sequence[Mapping[str, Any]], tests: int, who: str) -> str:
    """Say how large a difference may be that did not show, over all tests."""
    bounds = [detectable_difference(difference["values"], tests) for difference in differences]
    if not any(bounds):
        return f"That does not show that {who} could: there is no spread to judge by."
    return (
        f"That does not show that {who} could: over {tests} tests, a true difference below "
        f"{max(filter(None, bounds)):.2f} points might well go unseen here."
    )
