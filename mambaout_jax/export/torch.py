"""Weights from workdirs to PyTorch and back; each conversion is read back and verified by comparing logits."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from mambaout_jax.data.imagenet_classes import class_description
from mambaout_jax.errors import reason
from mambaout_jax.export.images import check_images
from mambaout_jax.machine import raise_machine_fault
from mambaout_jax.models import Model, create_model
from mambaout_jax.plugins import load as load_plugins
from mambaout_jax.process import commit_folder, scratch_folder
from mambaout_jax.run.checkpoints import Checkpoints
from mambaout_jax.run.config import RunConfig, evaluation_config
from mambaout_jax.run.errors import RunError
from mambaout_jax.run.state import TrainState
from mambaout_jax.run.workdir import check_space, is_workdir, load_environment, open_workdir, record_run, restore_run
from mambaout_jax.storage import is_remote
from mambaout_jax.tasks.api import Task
from mambaout_jax.tasks.registry import DEFAULT, find_task, get_task
from mambaout_jax.weights import (
    ENDINGS,
    LogitsCheck,
    ResolvedModel,
    TorchCheckpoint,
    WeightsError,
    check_file_target,
    check_folder_target,
    check_not_reduced,
    check_timm,
    check_unambiguous,
    converting_file_errors,
    find_license,
    from_checkpoint,
    get_format,
    license_notice,
    model_args,
    read_checkpoint,
    resolve_model,
    to_torch,
    write_file,
    write_folder,
)
from mambaout_jax.words import count, listed

# The files that an import writes.
_WORKDIR = ("checkpoints", "config.json", "environment.json")

# Upper limit for the bytes of a checkpoint in addition to its arrays.
_OVERHEAD = 2**20

Log = Callable[[str], None]


def _silent(sentence: str) -> None:
    """Print nothing."""


def import_weights(
    source: str,
    path: epath.PathLike,
    *,
    name: str | None = None,
    entry: str | None = None,
    task: str | None = None,
    plugins: Sequence[str] = (),
    verify_timm: bool = False,
    force: bool = False,
    log: Log = _silent,
) -> None:
    """Build a workdir from PyTorch weights, for evaluation, prediction and fine-tuning.

    Args:
        source: any source of `weights.from_torch`.
        name: name of the variant; None to infer it from the source.
        entry: entry of a file of torch.save that contains the weights; None to find it by its name.
        task: name of the task that the weights were trained for; None for the recorded one, or else the one that the
            model fits.
        plugins: modules with families or tasks of other packages.
        verify_timm: also compare with the installed timm.
        force: replace a workdir of imported weights.
        log: function that prints the messages.

    Raises:
        RunError, TaskError, WeightsError, ModelError: the source or the workdir is invalid, or logits differ.
    """
    load_plugins(plugins)
    get_task(task or DEFAULT)  # fails here on an unknown name
    target = check_import_target(path, force)
    checkpoint = read_checkpoint(source, entry=entry)
    resolved = _resolve(checkpoint, name)
    model = create_model(resolved.name, **resolved.options)
    if verify_timm:
        check_timm(model)
    kind, task_options = _find_task(source, checkpoint, model, task)
    log(_describe(source, checkpoint, resolved, model))
    if checkpoint.ignored:
        log(f"ignored in {source}: {', '.join(checkpoint.ignored)}")
    if resolved.others:
        verb = "has" if len(resolved.others) == 1 else "have"
        log(f"{listed(resolved.others)} {verb} the same shapes; select another variant with --model")
    if checkpoint.config is None:
        spec = model.input_spec
        log(
            f"{source} has no preprocessing settings; assuming {spec.size[0]}x{spec.size[1]} pixels, crop "
            f"{spec.crop_pct}, mean and std of {model.name} (a folder in timm's format has them in its config.json)"
        )
    found = {key: getattr(checkpoint.config, key, None) for key in ("class_names", "exif_orientation", "category_ids")}
    config = evaluation_config(kind, {"name": model.name, **_changes(model)}, None, plugins).replace(task_options)
    imported = config.build_task().imported_labels(model, found)
    if imported.remark:
        log(imported.remark)
    config = config.replace({"data.name": imported.dataset})
    environment = {"imported_from": source, "labels": imported.labels}
    if license := find_license(checkpoint, model.name):
        environment["license"] = license
    if notice := license_notice(license, model.name):
        log(notice)
    config.build_task().eval_transform(model)  # fails here on invalid preprocessing settings
    variables = from_checkpoint(model, checkpoint)
    images = check_images(config, model, log)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise_machine_fault(error, target, to_write=True)
        raise RunError(f"{target} cannot be written ({reason(error)}); use another folder") from error
    # Checked first, because orbax prints pages of errors on a full disk.
    check_space(target.parent, _OVERHEAD + sum(leaf.nbytes for leaf in jax.tree.leaves(variables)))
    with converting_file_errors(target), scratch_folder(target) as drafts:
        draft = epath.Path(drafts) / "workdir"
        _write_workdir(draft, config, environment, variables)
        check = LogitsCheck(model, variables, images)
        del variables  # avoids two copies of a large model in memory
        log(check.require("checkpoint read back", restore_run(draft).variables))
        if verify_timm:
            log(check.require_timm(source))
        commit_folder(draft, target, replace=force)


def export_weights(
    path: epath.PathLike,
    out: str,
    *,
    key_format: str | None = None,
    weights: str | None = None,
    dtype: str = "float32",
    verify_timm: bool = False,
    force: bool = False,
    log: Log = _silent,
) -> None:
    """Write the weights of a workdir for PyTorch.

    Args:
        out: a file if it has a known extension, else a folder in timm's format.
        key_format: key format of a file, one of `model.family.key_formats`; None for the first. Folders always use the
            first.
        weights: "ema" or "raw"; None for "ema" if the run has an average, else "raw".
        dtype: "float32" or "bfloat16".
        verify_timm: also compare with the installed timm.
        force: replace an existing file or folder.
        log: function that prints the messages.

    Raises:
        RunError, WeightsError: the workdir, the key format or the output is invalid, or logits differ.
    """
    is_file = out.lower().endswith(ENDINGS)
    (check_file_target if is_file else check_folder_target)(out, force)  # before the work
    run = restore_run(path, weights)
    if verify_timm:
        check_timm(run.model)
    default = run.model.family.key_formats[0].name
    if key_format not in (None, default) and not is_file:
        raise WeightsError(
            f"{out} is a folder in timm's format, which requires key format {default!r}; for {key_format!r}, use a "
            f"file with the extension {' or '.join(ENDINGS)}"
        )
    log(f"{path}: {run.model.name}, {run.weights} weights of step {run.step}")
    options = {key: run.config.values[key] for key in run.config.task.inference_keys}
    set_options = [f"config.{key}" for key, value in options.items() if value != run.config.task.keys[key].default]
    if is_file and (changes := [*model_args(run.model), *set_options]):
        log(f"a file does not record the options that differ from the defaults, {', '.join(changes)}; a folder does")
    if notice := run.license_notice:
        log(f"{notice}{'; a file does not record it, a folder does' if is_file else ''}")
    tensors = to_torch(run.model, run.variables, key_format, dtype)
    if remark := get_format(run.model, key_format).remark(tensors):
        log(remark)
    written = jax.tree.map(lambda leaf: leaf.astype(dtype).astype(jnp.float32), run.variables)
    check = LogitsCheck(run.model, written, check_images(run.config, run.model, log))
    if dtype != "float32":
        log(f"rounded to {dtype}: logits change by {check.difference(run.variables):.2g} of the largest")

    def check_draft(draft: os.PathLike) -> None:
        log(check.require("weights read back", from_checkpoint(run.model, read_checkpoint(draft))))
        if verify_timm:
            log(check.require_timm(os.fspath(draft)))

    if is_file:
        write_file(out, tensors, force=force, check=check_draft)
    else:
        names = run.labels.get("class_names")
        words = {name: class_description(name) for name in names or ()}
        known = words if words and None not in words.values() else None  # timm requires all or none
        write_folder(
            out,
            run.model,
            tensors,
            class_names=names,
            class_descriptions=known,
            exif_orientation=run.labels.get("exif_orientation"),
            category_ids=run.labels.get("category_ids"),
            license=run.license,
            task=None if run.config.task is get_task(DEFAULT) else run.config.task.name,
            task_options=options,
            force=force,
            check=check_draft,
        )


def _resolve(checkpoint: TorchCheckpoint, name: str | None) -> ResolvedModel:
    """Return the variant of weights, if it is certain."""
    resolved = resolve_model(checkpoint, name)
    check_unambiguous(checkpoint.origin, resolved)
    check_not_reduced(checkpoint, resolved)
    return resolved


def _describe(source: str, checkpoint: TorchCheckpoint, resolved: ResolvedModel, model: Model) -> str:
    entry = f", entry {checkpoint.wrapper!r}" if checkpoint.wrapper else ""
    changes = "".join(f", {key} {value}" for key, value in model_args(model).items())
    size = count(model.num_classes, "class")
    return f"{source}{entry}: {model.name}{changes}, {size}, in key format {resolved.key_format.name}"


def _find_task(
    source: str, checkpoint: TorchCheckpoint, model: Model, name: str | None
) -> tuple[type[Task], dict[str, Any]]:
    """Return the task of weights, and the values of its keys that are recorded with them.

    Raises:
        RunError: the model does not fit the task.
    """
    recorded = getattr(checkpoint.config, "task", None)
    kind = get_task(name or recorded) if name or recorded else find_task(model)
    if not kind.fits(model):
        raise RunError(
            f"{source} has the weights of {model.name}, which does not fit the task {kind.name}; omit --task, or name "
            "the task of the model"
        )
    if kind.name != recorded:
        return kind, {}
    options = checkpoint.config.task_options
    return kind, {key: options[key] for key in kind.inference_keys if key in options}


def check_import_target(path: epath.PathLike, force: bool) -> epath.Path:
    """Check that a workdir of imported weights may be written, and return its path without links.

    Raises:
        RunError: it is in a bucket, exists without `force`, or has other files.
    """
    if is_remote(path):
        raise RunError(f"{path} is in a bucket; import into a local folder and copy it there")
    target = epath.Path(os.path.realpath(open_workdir(path, to_write=True)))
    if not os.path.lexists(target):
        return target
    if not force:
        raise RunError(f"{target} exists; use another folder, or replace it with --force")
    if (
        not is_workdir(target)
        or "imported_from" not in load_environment(target)
        or {path.name for path in target.iterdir()} - set(_WORKDIR)
    ):
        raise RunError(
            f"{target} has files other than imported weights, so --force does not replace it; use another folder"
        )
    return target


def _changes(model: Model) -> dict[str, Any]:
    """Return the options that differ from the variant's defaults, under the names of a config."""
    own = create_model(model.name).input_spec
    spec = {key: value for key, value in model.input_spec._asdict().items() if value != getattr(own, key)}
    if "size" in spec:
        spec["img_size"] = spec.pop("size")
    return {**model_args(model), **spec}


def _write_workdir(
    workdir: epath.Path, config: RunConfig, environment: dict[str, Any], variables: dict[str, Any]
) -> None:
    workdir.mkdir()
    try:
        checkpoints = Checkpoints(workdir / "checkpoints")
        checkpoints.save(TrainState(jnp.zeros((), jnp.int32), variables, None, ()), {})
        checkpoints.close()
        record_run(workdir, config, environment)
    except (OSError, ValueError) as error:
        raise_machine_fault(error, workdir.parent.parent, to_write=True)
        raise
