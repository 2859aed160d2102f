"""The results of a study: the numbers of its runs, and the conclusions that they support."""

import json
import statistics
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from etils import epath

from mambaout_jax.errors import reason
from mambaout_jax.machine import raise_machine_fault
from mambaout_jax.run.errors import RunError
from mambaout_jax.study.statistics import holm, interval, is_significant, minimum_detectable_effect, p_value
from mambaout_jax.study.variants import COMPARISONS, StudyVariant
from mambaout_jax.tasks.api import Metric
from mambaout_jax.words import count

# How the answer refers to each comparison, in order of importance.
SIZES: Mapping[str, str] = MappingProxyType({"matched": "at equal parameters", "removed": "at equal widths"})
DIVERGED = "diverged.json"
EXCLUDED = "Excluded because a run diverged:"


class Divergence(NamedTuple):
    """The reason why a variant is excluded: the repeat whose run diverged, and the run's error message."""

    repeat: int
    reason: str


class Outcome(NamedTuple):
    """The result of one run.

    Args:
        score: the primary metric at the last step, of the EMA weights if the run has them.
        step_seconds: time per step in each record of the run's metrics, waiting for data included.
    """

    score: float
    steps: int
    step_seconds: tuple[float, ...]


def read_outcome(folder: epath.Path, metric: str, batch_size: int) -> Outcome:
    """Read the result of a finished run.

    Raises:
        RunError: its files are missing or invalid.
    """
    try:
        results = json.loads((folder / "results.json").read_text())
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines if line.endswith("}")]  # a kill may have truncated one
        seconds = [batch_size / line["images_per_second"] for line in records if line["kind"] == "train"]
        score = results["ema" if "ema" in results else "raw"][metric]
        return Outcome(score, results["steps"], tuple(seconds))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise_machine_fault(error, folder)
        raise RunError(
            f"{folder} does not contain the files of a finished run ({reason(error)}); remove it and rerun the same "
            "command"
        ) from error


def read_divergence(folder: epath.Path, repeat: int) -> Divergence | None:
    """Read the record of a run that diverged; None if there is none.

    Raises:
        RunError: the record is invalid.
    """
    record = folder / DIVERGED
    if not record.exists():
        return None
    try:
        return Divergence(repeat, str(json.loads(record.read_text())["reason"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise_machine_fault(error, record)
        raise RunError(
            f"{record} is not a valid record of a divergence ({reason(error)}); remove {folder} to train it again"
        ) from error


def summarize(
    variants: Sequence[StudyVariant],
    outcomes: Mapping[str, Sequence[Outcome]],
    memory: Mapping[str, int],
    majority_baseline: float,
    diverged: Mapping[str, Divergence],
    metric: Metric,
) -> dict[str, Any]:
    """Compute the results in study.json.

    Args:
        variants: the baseline first, which did not diverge.
        outcomes: by name of the variant, one per repeat; not needed for variants that diverged.
        memory: bytes, by name of the variant.
        majority_baseline: the score of a model that ignores the image.
        diverged: by name of the variants to exclude.
        metric: the metric to compare.
    """
    excluded = [_exclude(variant, diverged[variant.name]) for variant in variants if variant.name in diverged]
    variants = [variant for variant in variants if variant.name not in diverged]
    baseline, *_ = variants
    scores = {variant.name: [outcome.score for outcome in outcomes[variant.name]] for variant in variants}
    comparisons = []
    for name, title in COMPARISONS.items():
        differences = [
            _difference(
                variant,
                [a - b for a, b in zip(scores[variant.name], scores[baseline.name], strict=True)],
                metric,
            )
            for variant in variants[1:]
            if name in variant.comparisons
        ]
        missing = [variant for variant in excluded if name in variant["comparisons"]]
        if differences or missing:
            verdict = _verdict(baseline.title, differences, missing)
            comparisons.append({"name": name, "title": title, "verdict": verdict, "differences": differences})
    tested = [
        difference for comparison in comparisons for difference in comparison["differences"] if difference["has_ssm"]
    ]
    rejected = holm([p_value(difference["values"]) for difference in tested])
    significant = [difference["variant"] for difference, reject in zip(tested, rejected, strict=True) if reject]
    described = [
        {
            "name": variant.name,
            "title": variant.title,
            "comparisons": list(variant.comparisons),
            "model": variant.model,
            "scores": scores[variant.name],
            "interval": interval(scores[variant.name])._asdict(),
            "params": variant.params,
            "macs": variant.macs,
            "step_seconds": statistics.median(s for outcome in outcomes[variant.name] for s in outcome.step_seconds),
            "memory_bytes": memory[variant.name],
        }
        for variant in variants
    ]
    missing = [
        f"{variant['title']} {SIZES[name]}"
        for variant in excluded
        if variant["has_ssm"]
        for name in variant["comparisons"]
    ]
    answer = _answer(described, comparisons, significant, majority_baseline, metric)
    return {
        "metric": metric._asdict(),
        "answer": f"{answer} {EXCLUDED} {', '.join(missing)}." if tested and missing else answer,
        "significant_after_holm": significant,
        "variants": described,
        "comparisons": comparisons,
        "diverged": excluded,
    }


def _exclude(variant: StudyVariant, divergence: Divergence) -> dict[str, Any]:
    return {
        "variant": variant.name,
        "title": variant.title,
        "has_ssm": variant.has_ssm,
        "comparisons": list(variant.comparisons),
        "model": variant.model,
        **divergence._asdict(),
    }


def _difference(variant: StudyVariant, values: list[float], metric: Metric) -> dict[str, Any]:
    found = interval(values)
    return {
        "variant": variant.name,
        "title": variant.title,
        "has_ssm": variant.has_ssm,
        "values": values,
        **found._asdict(),
        "improves": (found.mean > 0) == metric.higher_is_better,
        "minimum_detectable_effect": minimum_detectable_effect(values),
        "significant": is_significant(values),
    }


def _direction(difference: Mapping[str, Any]) -> int:
    """Return 1 for a significant improvement, -1 for the opposite, and 0 for a difference that is not significant."""
    if not difference["significant"]:
        return 0
    return 1 if difference["improves"] else -1


def _verdict(baseline: str, differences: Sequence[Mapping[str, Any]], excluded: Sequence[Mapping[str, Any]]) -> str:
    phrases = {1: "Better than", -1: "Worse than", 0: "Not significantly different from"}
    sentences = [
        f"{phrase} {baseline}: {', '.join(titles)}."
        for direction, phrase in phrases.items()
        if (titles := [difference["title"] for difference in differences if _direction(difference) == direction])
    ]
    if excluded:
        missing = [f"{variant['title']} (repeat {variant['repeat']})" for variant in excluded]
        sentences.append(f"{EXCLUDED} {', '.join(missing)}.")
    return " ".join(sentences)


def _answer(
    variants: Sequence[Mapping[str, Any]],
    comparisons: Sequence[Mapping[str, Any]],
    significant: Sequence[str],
    majority_baseline: float,
    metric: Metric,
) -> str:
    """Return the answer to whether the data need an SSM, corrected for all tests, with the power of these tests."""
    with_ssm: dict[str, Sequence[Mapping[str, Any]]] = dict.fromkeys(COMPARISONS, ())
    for comparison in comparisons:
        with_ssm[comparison["name"]] = [one for one in comparison["differences"] if one["has_ssm"]]
    baseline = variants[0]["title"]
    tested = [difference for differences in with_ssm.values() for difference in differences]
    if not tested:
        return "Every SSM diverged, so the study has no answer."
    if not any(_beats(variant["interval"], majority_baseline, metric) for variant in variants):
        score = f"{majority_baseline:.2f} {metric.unit}".strip()
        return (
            f"No variant is significantly better than the majority baseline of {score} "
            f"with {count(len(variants[0]['scores']), 'repeat')}, so the study has no answer; use more seeds."
        )
    better, worse = (_name_significant(with_ssm, significant, direction) for direction in (1, -1))
    others = [difference for difference in tested if difference["variant"] not in significant]
    uncorrected = {_direction(difference) for difference in others}
    sentences = []
    if better:
        sentences.append(f"Better than {baseline} {better}.")
        matched = [difference for difference in with_ssm["matched"] if _direction(difference) > 0]
        if with_ssm["matched"] and not matched:
            sentences.append(f"At equal parameters, no SSM is significantly better than {baseline}.")
        elif matched and not any(difference["variant"] in significant for difference in matched):
            sentences.append(
                f"At equal parameters, none is significant after correction for {count(len(tested), 'test')}."
            )
    elif others:
        sentences.append(f"No SSM is significantly better than {baseline}.")
    if worse:
        sentences.append(f"Worse than {baseline} {worse}.")
    if words := " or ".join(word for sign, word in ((1, "better"), (-1, "worse")) if sign in uncorrected):
        sentences.append(
            f"An SSM that is {words} only in the tables below is significant in a single test, but not after "
            f"correction for {count(len(tested), 'test')}."
        )
    if others and not better:
        claim = "the others do not help" if worse else "an SSM does not help"
        sentences.append(_power(others, len(tested), claim, metric))
    return " ".join(sentences)


def _beats(interval: Mapping[str, float], majority_baseline: float, metric: Metric) -> bool:
    """Return whether the whole interval is better than the majority baseline."""
    if metric.higher_is_better:
        return interval["low"] > majority_baseline
    return interval["high"] < majority_baseline


def _name_significant(
    with_ssm: Mapping[str, Sequence[Mapping[str, Any]]], significant: Sequence[str], direction: int
) -> str:
    parts = []
    for name, size in SIZES.items():
        found = [one for one in with_ssm[name] if one["variant"] in significant and _direction(one) == direction]
        if found:
            parts.append(f"{size}: {', '.join(one['title'] for one in found)}")
    return "; ".join(parts)


def _power(differences: Sequence[Mapping[str, Any]], tests: int, claim: str, metric: Metric) -> str:
    """Return a sentence about the minimum detectable effect, corrected for the number of tests."""
    effects = [minimum_detectable_effect(difference["values"], tests) for difference in differences]
    if not any(effects):
        return f"This does not show that {claim}: the repeats have no spread, so the tests have no known power."
    effect = max(filter(None, effects))
    if metric.unit == "%" and effect >= 100:
        repeats = len(differences[0]["values"])
        return (
            f"This does not show that {claim}: {count(repeats, 'repeat')} cannot detect any difference; use more seeds."
        )
    return (
        f"This does not show that {claim}: with {count(tests, 'test')}, the minimum detectable effect is "
        f"{effect:.2f} points."
    )
