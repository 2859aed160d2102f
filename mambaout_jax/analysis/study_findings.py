"""What the runs of a study found, in numbers and in words that say no more than these."""

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from mambaout_jax.analysis.study_statistics import compare, detectable_difference, holm, interval, p_value
from mambaout_jax.analysis.study_twins import COMPARISONS, MIXERS, Twin
from mambaout_jax.train import RunError


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


def find(
    twins: Sequence[Twin], outcomes: Mapping[str, Sequence[Outcome]], memory: Mapping[str, int], chance: float
) -> dict[str, Any]:
    """Put together what study.json holds beside what was asked.

    Args:
        twins: the one without an SSM first.
        outcomes: by the twins' names, one for each repeat.
        memory: bytes, by the twins' names.
        chance: top-1 of guessing, in percent.
    """
    baseline, *_ = twins
    top1 = {twin.name: [outcome.top1 for outcome in outcomes[twin.name]] for twin in twins}
    comparisons = []
    for name, (about, _) in COMPARISONS.items():
        differences = [
            _difference(twin, [own - base for own, base in zip(top1[twin.name], top1[baseline.name], strict=True)])
            for twin in twins[1:]
            if name in twin.comparisons
        ]
        comparisons.append({"name": name, "about": about, "verdict": _sum_up(differences), "differences": differences})
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
    return {
        "answer": _answer(described, comparisons, held, chance),
        "held": held,
        "twins": described,
        "comparisons": comparisons,
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


def _sum_up(differences: Sequence[Mapping[str, Any]]) -> str:
    words = {1: "Better than", -1: "Worse than", 0: "Not told apart from"}
    return " ".join(
        f"{word} convolution alone: {', '.join(titles)}."
        for told, word in words.items()
        if (titles := [difference["title"] for difference in differences if difference["told_apart"] == told])
    )


def _answer(
    twins: Sequence[Mapping[str, Any]], comparisons: Sequence[Mapping[str, Any]], held: Sequence[str], chance: float
) -> str:
    """Answer whether the data need an SSM: in words of what was told apart, and of what could have been."""
    if all(twin["accuracy"]["low"] <= chance for twin in twins):
        return (
            f"No twin is told apart from guessing, which gives {chance:.2f} %, with {len(twins[0]['top1'])} repeats; "
            "take more seeds. Nothing can be said of the SSM."
        )
    with_ssm = {
        comparison["name"]: [difference for difference in comparison["differences"] if difference["has_ssm"]]
        for comparison in comparisons
    }
    for name, size in (("matched", "with as many parameters"), ("removed", "with as many channels")):
        better = [
            difference["title"]
            for difference in with_ssm[name]
            if difference["told_apart"] > 0 and difference["twin"] in held
        ]
        if better:
            answer = f"Better than convolution alone {size}: {' and '.join(better)}."
            more = " With as many parameters, no SSM is told apart from convolution alone as better."
            return answer if name == "matched" else answer + more
    tested = [difference for differences in with_ssm.values() for difference in differences]
    answer = "No SSM did better than convolution alone by more than chance explains."
    if any(difference["told_apart"] > 0 for difference in tested):
        answer += f" An SSM that is called better below is so by a test of its own, of which there are {len(tested)}."
    unseen = [difference["detectable"] for difference in tested if difference["detectable"] is not None]
    if not unseen:
        return f"{answer} That does not show that none could: there is no spread to judge by."
    return (
        f"{answer} That does not show that none could: a true difference below {max(unseen):.2f} points might well go "
        "unseen here."
    )
