"""Studies: variants of a model with and without an SSM, trained on the same data for the same steps and compared."""

import contextlib
import io
import json
import math
import re
import runpy
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
from etils import epath
from PIL import Image

from mambaout_jax import distributed
from mambaout_jax.analyze.ssm_need import measure_first_stage
from mambaout_jax.checks import expected_one_of
from mambaout_jax.data import DataError, Source
from mambaout_jax.errors import reason
from mambaout_jax.experiments import split_experiment
from mambaout_jax.machine import raise_machine_fault
from mambaout_jax.models import Model
from mambaout_jax.report.html import write_report
from mambaout_jax.run.config import RunConfig, changeable_keys, flatten_config, known_keys, nest
from mambaout_jax.run.dataset import open_split
from mambaout_jax.run.errors import DivergedError, RunError
from mambaout_jax.run.files import write_atomically
from mambaout_jax.run.signals import StopSignals
from mambaout_jax.run.workdir import LOCK, lock_workdir, open_workdir
from mambaout_jax.storage import is_remote
from mambaout_jax.study.findings import DIVERGED, Divergence, Outcome, read_divergence, read_outcome, summarize
from mambaout_jax.study.folds import fold_splits
from mambaout_jax.study.memory import step_memory
from mambaout_jax.study.page import write_page
from mambaout_jax.study.variants import StudyVariant, design_variants, read_specs
from mambaout_jax.tasks.api import Task
from mambaout_jax.tasks.registry import DEFAULT, get_task
from mambaout_jax.train.inputs import steps_per_epoch
from mambaout_jax.train.loop import train
from mambaout_jax.train.program import check_batches

# The files that a run writes last, in this order.
LAST_FILES = ("results.json", "report.html")


def find_experiment(dataset: str, task: str = DEFAULT) -> str:
    """Return the experiment in configs/study.py for a dataset and a task, as `read_config` takes it.

    Raises:
        TaskError: no task has the name.
        RunError: the dataset has no experiment for the task.
    """
    get_task(task)
    name = re.split("[/:]", dataset)[0]
    known = runpy.run_path(split_experiment("study")[0])["EXPERIMENTS"]
    tasks = {its_task: experiment for experiment, (its_dataset, its_task, *_) in known.items() if its_dataset == name}
    if task in tasks:
        return f"study:{tasks[task]}"
    if tasks:
        raise RunError(f"dataset {name!r} has no experiment for {task}; add --task {' or '.join(tasks)}")
    experiments = {
        its_dataset: experiment for experiment, (its_dataset, its_task, *_) in known.items() if its_task == task
    }
    add = "add" if task == DEFAULT else f"replace --task {task} with"
    raise RunError(
        f"no experiment for dataset {name!r} and {task}{expected_one_of(name, experiments)}; for your own "
        f"photographs, {add} --config=study:{[*experiments.values()][-1]}"
    )


def run_study(config: RunConfig, path: epath.PathLike, num_repeats: int) -> dict[str, Any]:
    """Train all variants on all folds, or continue the study in the workdir, and write its page.

    Repeat r uses the config's seed plus r and fold r of the training split as its test set, for every variant. The
    validation split is not used: it remains for the final model.

    Args:
        config: config of the experiment. `model` is the baseline, `study` the variants.
        path: the workdir; each run has a workdir of its own inside.
        num_repeats: number of folds and seeds, at least two.

    Returns:
        The content of study.json.

    Raises:
        RunError, TaskError, DataError, ModelError: the config, the workdir or the dataset is invalid.
        DivergedError: the baseline diverged. Any other variant that diverges is excluded.
        StoppedError: the process received a signal; finished steps are saved.
    """
    with StopSignals() as stop, contextlib.ExitStack() as cleanup:
        settings, task = nest(config.values), config.build_task()
        _check(config, task, path, num_repeats)
        source = open_split(config, task, config.data.train_split)
        folds = fold_splits(config.data.train_split, len(source), num_repeats)
        steps_per_epoch(config, len(source) - math.ceil(len(source) / num_repeats))  # refuses batches above a fold

        def build(options: Mapping[str, Any]) -> Model:
            return config.with_model(options).build_task().build_model(source.labels)

        variants = stop.interruptible(
            partial(design_variants, config.model, settings.get("study"), build),
            "Searching for widths that give the variants equal numbers of parameters.",
        )
        plan = {
            "seeds": num_repeats,
            "fingerprint": source.fingerprint,
            "config": settings,
            "variants": {variant.name: variant.model for variant in variants},
        }
        baseline = build(variants[0].model)
        majority = task.baseline_score(source)
        warn_about_shrinking(source, baseline.input_spec.size)
        workdir = cleanup.enter_context(_claimed(path, plan, changeable_keys(known_keys(config.values))))
        if jax.config.jax_compilation_cache_dir is None:
            # All repeats of a variant, and restarts, share one compilation.
            jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))

        diverged = _train_variants(workdir, config, variants, folds, stop)
        finished = [variant for variant in variants if variant.name not in diverged]
        memory = {}
        for variant in finished:
            memory[variant.name] = stop.interruptible(
                partial(step_memory, _config(config, variant, 0, folds[0])), f"Estimating the memory of {variant.name}."
            )
            jax.clear_caches()
        stop.check()
        outcomes = _outcomes(workdir, config, finished, num_repeats)
        study = {
            **_describe(config, source, folds, [outcome.steps for outcome in outcomes[variants[0].name]]),
            "majority_baseline": majority,
            "first_stage": measure_first_stage(baseline),
            **summarize(variants, outcomes, memory, majority, diverged, config.task.metrics[0]),
        }
        write_atomically(workdir / "study.json", json.dumps(study, indent=2) + "\n")
        write_page(workdir, study)
        return study


def _check(config: RunConfig, task: Task, path: epath.PathLike, num_repeats: int) -> None:
    """Check what depends on neither the dataset nor the content of the workdir, before anything that takes long."""
    if config.init_from is not None:
        raise RunError("config.init_from is set, but all variants of a study start from random weights; unset it")
    if (teacher := task.teacher()) is not None:
        raise RunError(
            f"config.{teacher.key} is {teacher.source!r}, but a study tests its variants on parts of the training "
            "split, on which the teacher may have been trained; unset it"
        )
    config.replace({"seed": config.seed + num_repeats - 1})  # the largest seed has to be valid too
    _local_workdir(path)
    read_specs(nest(config.values).get("study"))
    fold_splits(config.data.train_split, num_repeats, num_repeats)
    check_batches(config, task, distributed.make_mesh(config.fsdp).size)
    task.check()


def _local_workdir(path: epath.PathLike) -> epath.Path:
    if is_remote(path):
        raise RunError(f"workdir {path} is in a bucket; a study requires a local folder")
    return open_workdir(path, to_write=True)


def run_folder(workdir: epath.Path, variant: StudyVariant, repeat: int) -> epath.Path:
    """Return the workdir of one training run."""
    return workdir / "runs" / variant.name / str(repeat)


def warn_about_shrinking(source: Source, size: tuple[int, int]) -> None:
    """Print a warning if the first image is larger than the models' input; ignore an unreadable one."""
    with contextlib.suppress(DataError, OSError, Image.DecompressionBombError):
        width, height = Image.open(io.BytesIO(source[0]["image"])).size
        if height > size[0] or width > size[1]:
            print(
                f"The first image has {height}x{width} px and is resized to {size[0]}x{size[1]} "
                "(config.model.img_size).",
                file=sys.stderr,
            )


def _config(config: RunConfig, variant: StudyVariant, repeat: int, splits: tuple[str, str]) -> RunConfig:
    train_split, validation_split = splits
    changes = {"seed": config.seed + repeat, "resume": "same"}
    changes |= {"data.train_split": train_split, "data.validation_split": validation_split}
    return config.with_model(variant.model).replace(changes)


def _train_variants(
    workdir: epath.Path,
    config: RunConfig,
    variants: Sequence[StudyVariant],
    folds: Sequence[tuple[str, str]],
    stop: StopSignals,
) -> dict[str, Divergence]:
    """Train each run that is not finished; return the variants that diverged, which are not repeated."""
    diverged: dict[str, Divergence] = {}
    runs = [(repeat, variant) for repeat in range(len(folds)) for variant in variants]
    for number, (repeat, variant) in enumerate(runs, 1):
        stop.check()
        folder = run_folder(workdir, variant, repeat)
        if variant.name in diverged or all((folder / name).exists() for name in LAST_FILES):
            continue
        divergence = read_divergence(folder, repeat)
        if divergence is None:
            print(f"Run {number} of {len(runs)}: {variant.name}, repeat {repeat}.", file=sys.stderr)
            try:
                train(_config(config, variant, repeat, folds[repeat]), folder)
                write_report(folder)
            except DivergedError as error:
                # Recorded, because the same run with the same seed would diverge again.
                divergence = Divergence(repeat, str(error))
                write_atomically(folder / DIVERGED, json.dumps({"reason": divergence.reason}) + "\n")
            jax.clear_caches()
        if divergence is not None:
            diverged[variant.name] = divergence
            if variant is variants[0]:
                raise DivergedError(
                    f"{variant.name}, repeat {repeat}: {divergence.reason}. This is the baseline of all comparisons: "
                    f"change the config and use another --workdir, or remove {folder} to train it again"
                )
            print(f"{variant.name} is excluded; repeat {repeat} diverged: {divergence.reason}", file=sys.stderr)
    return diverged


@contextlib.contextmanager
def _claimed(path: epath.PathLike, plan: dict[str, Any], changeable: Collection[str]) -> Iterator[epath.Path]:
    """Create and lock the workdir, or check that it contains the same study, except for `changeable` config keys."""
    workdir = _local_workdir(path)
    for name in plan["variants"]:  # their runs have workdirs of these names
        open_workdir(workdir / "runs" / name, to_write=True)
    file = workdir / "plan.json"
    with contextlib.ExitStack() as cleanup:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            # A kill may have left a partly written plan.
            others = [
                item.name
                for item in workdir.iterdir()
                if item.name != LOCK and not item.name.startswith(f".{file.name}.")
            ]
            if others and not file.exists():
                raise RunError(f"workdir {workdir} has files but no study; use another --workdir")
            cleanup.enter_context(lock_workdir(workdir))
            if file.exists():
                _check_plan(workdir, plan, json.loads(file.read_text()), changeable)
            else:
                write_atomically(file, json.dumps(plan, indent=2) + "\n")
        except OSError as error:
            raise_machine_fault(error, workdir, to_write=True)
            raise RunError(f"workdir {workdir} is not writable ({reason(error)}); use another --workdir") from error
        except ValueError as error:
            if isinstance(error, RunError):
                raise
            raise RunError(f"{file} is not the plan of a study ({reason(error)}); use another --workdir") from error
        yield workdir


def _check_plan(workdir: epath.Path, plan: dict[str, Any], recorded: Any, changeable: Collection[str]) -> None:
    if not isinstance(recorded, dict):
        raise ValueError(f"{recorded!r:.40} is not an object")
    if recorded.keys() != plan.keys():
        raise RunError(f"workdir {workdir} contains a study of another version of this program; use another --workdir")
    ours, theirs = flatten_config(plan), flatten_config(recorded)
    changes = [
        f"{key} was {theirs.get(key)!r}, is {ours.get(key)!r}"
        for key in sorted(ours | theirs)
        if ours.get(key) != theirs.get(key) and key.removeprefix("config.") not in changeable
    ]
    if changes:
        raise RunError(
            f"workdir {workdir} contains a study with other settings: {'; '.join(changes)}; use another --workdir"
        )


def _outcomes(
    workdir: epath.Path, config: RunConfig, variants: Sequence[StudyVariant], num_repeats: int
) -> dict[str, list[Outcome]]:
    folders = {
        variant.name: [run_folder(workdir, variant, repeat) for repeat in range(num_repeats)] for variant in variants
    }
    metric = config.task.metrics[0].key
    return {name: [read_outcome(folder, metric, config.batch_size) for folder in own] for name, own in folders.items()}


def _describe(
    config: RunConfig, source: Source, folds: Sequence[tuple[str, str]], steps: Sequence[int]
) -> dict[str, Any]:
    return {
        "dataset": source.name,
        "fingerprint": source.fingerprint,
        "num_images": len(source),
        "labels": dict(source.labels),
        "num_epochs": config.num_epochs,
        "batch_size": config.batch_size,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "repeats": [
            {"seed": config.seed + repeat, "train": splits[0], "test": splits[1], "steps": steps[repeat]}
            for repeat, splits in enumerate(folds)
        ],
    }
