"""A study: does this data need an SSM? Twins are trained for equal steps on equal data and held against each other."""

import contextlib
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from etils import epath
from PIL import Image

from mambaout_jax.analyze.ssm_need import measure_first_stage
from mambaout_jax.data import DataError
from mambaout_jax.data.buckets import is_remote
from mambaout_jax.data.prepare import ensure_prepared
from mambaout_jax.models import create_model
from mambaout_jax.run.config import FREE_TO_CHANGE, flatten_config, from_json
from mambaout_jax.run.errors import DivergedError, RunError
from mambaout_jax.run.files import write_atomically
from mambaout_jax.run.signals import StopSignals
from mambaout_jax.run.workdir import LOCK, lock_workdir, open_workdir
from mambaout_jax.study.findings import DIVERGED, Divergence, Outcome, find, read_divergence, read_outcome
from mambaout_jax.study.folds import fold_splits
from mambaout_jax.study.memory import step_memory
from mambaout_jax.study.page import write_page
from mambaout_jax.study.twins import Twin, design_twins
from mambaout_jax.tasks.classification.source import ImageSource, open_source
from mambaout_jax.train.loop import train

Settings = Mapping[str, Any]

MOST_LABELS = 2000
# What a run writes when nothing is left to do, in this order.
LAST_FILES = ("results.json", "report.html")
EXPERIMENTS = epath.Path(__file__).parents[2] / "configs" / "study"


def find_experiment(dataset: str) -> str:
    """Give the file of the experiment that comes with the program for a dataset.

    Raises:
        RunError: there is none.
    """
    if not EXPERIMENTS.is_dir():
        raise RunError(
            f"the experiments in configs/study are not part of what is installed; to study dataset {dataset!r}, run "
            "from a checkout or name an experiment with --config"
        )
    file = EXPERIMENTS / f"{re.split('[/:]', dataset)[0]}.py"
    if not file.exists():
        raise RunError(
            f"there is no configs/study/{file.name} that says how to train on dataset {dataset!r}; name an experiment "
            "whose images are like these, such as --config=configs/study/photos.py, or write one"
        )
    return str(file)


def run_study(settings: Settings, path: epath.PathLike, num_repeats: int) -> dict[str, Any]:
    """Train all twins on all folds, or go on where the study in the workdir stopped, and write its page.

    Repeat r has the config's seed plus r and is tested on fold r of its training split, for every twin the same. The
    validation split is not looked at: it stays for the model that is chosen in the end.

    Args:
        settings: of the experiment that the twins share, sections in dicts. Its model is the twin without an SSM.
        path: the workdir; each run has one of its own below it.
        num_repeats: folds and seeds, two or more.

    Returns:
        What study.json holds.

    Raises:
        RunError, DataError, ModelError: the settings, the workdir or the dataset does not fit.
        DivergedError: the loss of the model without an SSM was not finite. Another twin is left out then.
        StoppedError: a signal came; everything is saved.
    """
    with StopSignals() as stop, contextlib.ExitStack() as cleanup:
        if settings["init_from"] is not None:
            raise RunError("config.init_from is set; the twins of a study all start afresh, so leave it unset")
        data = settings["data"]
        ensure_prepared(data["name"], data["data_dir"])
        source = open_source(data["name"], data["train_split"], data["data_dir"])
        folds = fold_splits(data["train_split"], len(source), num_repeats)
        twins = stop.interruptible(partial(design_twins, settings["model"], len(source.class_names)))
        plan = {
            "seeds": num_repeats,
            "fingerprint": source.fingerprint,
            "config": settings,
            "twins": {twin.name: twin.model for twin in twins},
        }
        baseline = create_model(num_classes=len(source.class_names), **twins[0].model)
        chance = percent_by_guessing(source)
        tell_shrinking(source, baseline.input_spec.size)
        workdir = cleanup.enter_context(_claimed(path, plan))
        if jax.config.jax_compilation_cache_dir is None:
            # The repeats of a twin, and what is started again, compile once.
            jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))

        diverged = _train_twins(workdir, settings, twins, folds, stop)
        finished = [twin for twin in twins if twin.name not in diverged]
        memory = {}
        for twin in finished:
            config = _config(settings, twin, 0, folds[0])
            memory[twin.name] = stop.interruptible(partial(step_memory, config))
            jax.clear_caches()
        stop.check()
        outcomes = _outcomes(workdir, settings, finished, num_repeats)
        study = {
            **_describe(settings, source, folds, [outcome.steps for outcome in outcomes[twins[0].name]]),
            "chance": chance,
            "first_stage": measure_first_stage(baseline),
            **find(twins, outcomes, memory, chance, diverged),
        }
        write_atomically(workdir / "study.json", json.dumps(study, indent=2) + "\n")
        write_page(workdir, study)
        return study


def run_folder(workdir: epath.Path, twin: Twin, repeat: int) -> epath.Path:
    """Give the workdir of one training run."""
    return workdir / "runs" / twin.name / str(repeat)


def percent_by_guessing(source: ImageSource) -> float:
    """Give the top-1 of naming the largest class for every image, counted in at most 2,000 spread evenly.

    Raises:
        RunError: none of these can be read.
    """
    indices = np.linspace(0, len(source) - 1, min(len(source), MOST_LABELS)).astype(int)
    labels, failure = Counter(), None
    for index in indices.tolist():
        try:
            labels[source[index]["label"]] += 1
        except DataError as error:  # what config.data.on_bad_record is for
            failure = error
    if not labels:
        raise RunError(f"none of {len(indices):,} training records can be read ({failure}); prepare the dataset again")
    return 100 * max(labels.values()) / labels.total()


def tell_shrinking(source: ImageSource, size: tuple[int, int]) -> None:
    """Say so if the first image is larger than what the twins see; what cannot be read, training tells."""
    with contextlib.suppress(DataError, OSError, Image.DecompressionBombError):
        width, height = Image.open(io.BytesIO(source[0]["image"])).size
        if height > size[0] or width > size[1]:
            print(
                f"the first image has {height}x{width} px; the twins see it at {size[0]}x{size[1]}, "
                "config.model.img_size",
                file=sys.stderr,
            )


def _config(settings: Settings, twin: Twin, repeat: int, splits: tuple[str, str]) -> Any:
    train_split, validation_split = splits
    data = {**settings["data"], "train_split": train_split, "validation_split": validation_split, "eval_sets": None}
    own = {"seed": settings["seed"] + repeat, "resume": "same", "data": data, "model": twin.model}
    return from_json(json.dumps({**settings, **own}))


def _train_twins(
    workdir: epath.Path, settings: Settings, twins: Sequence[Twin], folds: Sequence[tuple[str, str]], stop: StopSignals
) -> dict[str, Divergence]:
    """Train each run that is not finished, and give the twins that diverged; these are not repeated."""
    diverged: dict[str, Divergence] = {}
    runs = [(repeat, twin) for repeat in range(len(folds)) for twin in twins]
    for number, (repeat, twin) in enumerate(runs, 1):
        stop.check()
        folder = run_folder(workdir, twin, repeat)
        if twin.name in diverged or all((folder / name).exists() for name in LAST_FILES):
            continue
        divergence = read_divergence(folder, repeat)
        if divergence is None:
            print(f"run {number} of {len(runs)}: {twin.name}, repeat {repeat}", file=sys.stderr)
            try:
                train(_config(settings, twin, repeat, folds[repeat]), folder)
            except DivergedError as error:
                # Written down, as the same run with the same seed would diverge again.
                divergence = Divergence(repeat, str(error))
                write_atomically(folder / DIVERGED, json.dumps({"reason": divergence.reason}) + "\n")
            jax.clear_caches()
        if divergence is not None:
            diverged[twin.name] = divergence
            if twin is twins[0]:
                raise DivergedError(
                    f"{twin.name}, repeat {repeat}: {divergence.reason}. All twins are held against this one: change "
                    f"that in another --workdir, or remove {folder} to train it again"
                )
            print(f"{twin.name} is left out; repeat {repeat} diverged: {divergence.reason}", file=sys.stderr)
    return diverged


@contextlib.contextmanager
def _claimed(path: epath.PathLike, plan: dict[str, Any]) -> Iterator[epath.Path]:
    """Make the workdir, or check that the study in it is the same one, and keep others out of it."""
    if is_remote(path):
        raise RunError(f"{path} lies in a bucket; a local folder is expected for a study")
    workdir = open_workdir(path)
    file = workdir / "plan.json"
    with contextlib.ExitStack() as cleanup:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            # A kill may have left a draft of the plan.
            others = [
                item.name
                for item in workdir.iterdir()
                if item.name != LOCK and not item.name.startswith(f".{file.name}.")
            ]
            if others and not file.exists():
                raise RunError(f"workdir {workdir} holds something else than a study; name another with --workdir")
            cleanup.enter_context(lock_workdir(workdir))
            if file.exists():
                _check_plan(workdir, plan, json.loads(file.read_text()))
            else:
                write_atomically(file, json.dumps(plan, indent=2) + "\n")
        except OSError as error:
            raise RunError(
                f"workdir {workdir} cannot be written ({error.strerror}); name another with --workdir"
            ) from error
        except ValueError as error:
            if isinstance(error, RunError):
                raise
            raise RunError(f"{file} is not the JSON that a study writes ({error}); name another --workdir") from error
        yield workdir


def _check_plan(workdir: epath.Path, plan: dict[str, Any], recorded: Any) -> None:
    if not isinstance(recorded, dict):
        raise ValueError(f"no object, but {recorded!r:.40}")
    ours, theirs = flatten_config(plan), flatten_config(recorded)
    changes = [
        f"{key} was {theirs.get(key)!r}, is {ours.get(key)!r}"
        for key in sorted(ours | theirs)
        if ours.get(key) != theirs.get(key) and key.removeprefix("config.") not in FREE_TO_CHANGE
    ]
    if changes:
        raise RunError(
            f"workdir {workdir} holds a study with other settings: {'; '.join(changes)}; name another with --workdir"
        )


def _outcomes(
    workdir: epath.Path, settings: Settings, twins: Sequence[Twin], num_repeats: int
) -> dict[str, list[Outcome]]:
    folders = {twin.name: [run_folder(workdir, twin, repeat) for repeat in range(num_repeats)] for twin in twins}
    return {name: [read_outcome(folder, settings["batch_size"]) for folder in own] for name, own in folders.items()}


def _describe(
    settings: Settings, source: ImageSource, folds: Sequence[tuple[str, str]], steps: Sequence[int]
) -> dict[str, Any]:
    return {
        "dataset": source.name,
        "fingerprint": source.fingerprint,
        "num_images": len(source),
        "num_classes": len(source.class_names),
        "num_epochs": settings["num_epochs"],
        "batch_size": settings["batch_size"],
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "repeats": [
            {"seed": settings["seed"] + repeat, "train": splits[0], "test": splits[1], "steps": steps[repeat]}
            for repeat, splits in enumerate(folds)
        ],
    }
