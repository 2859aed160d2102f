"""Folders in timm's format: config.json and weights, as on the Hugging Face hub."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from mambaout_jax.errors import reason
from mambaout_jax.machine import raise_machine_fault
from mambaout_jax.models import Model
from mambaout_jax.process import commit_folder, scratch_folder, sync
from mambaout_jax.storage import find_unknown_home
from mambaout_jax.weights.errors import WeightsError, converting_file_errors
from mambaout_jax.weights.files import ENDINGS, write_tensors
from mambaout_jax.weights.options import model_args
from mambaout_jax.weights.timm_config import CATEGORY_IDS, CONFIG_NAME, EXIF_ORIENTATION, TASK

# In order of preference, as in timm.
WEIGHTS_NAMES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")


def find_weights(folder: str, origin: str) -> str:
    """Return the path of the weights in a folder.

    Raises:
        WeightsError: the folder has none of timm's file names.
    """
    for name in WEIGHTS_NAMES:
        if os.path.lexists(path := os.path.join(folder, name)):
            return path
    raise WeightsError(f"{origin} has no weights; expected one of {', '.join(WEIGHTS_NAMES)} in it")


# Extensions by which other programs choose a format; a folder of such a name would be a misunderstanding.
_OTHER_FORMATS = (".onnx", ".npz", ".npy", ".h5", ".keras", ".msgpack", ".ckpt", ".pb", ".tflite", ".pkl", ".zip")


def write_folder(
    path: str | os.PathLike,
    model: Model,
    tensors: Mapping[str, np.ndarray],
    *,
    class_names: Sequence[str] | None = None,
    class_descriptions: Mapping[str, str] | None = None,
    exif_orientation: bool | None = None,
    category_ids: Sequence[int] | None = None,
    license: str | None = None,
    task: str | None = None,
    task_options: Mapping[str, Any] = MappingProxyType({}),
    force: bool = False,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write config.json and model.safetensors for `timm.create_model("local-dir:PATH", pretrained=True)`.

    Args:
        tensors: state dict of the model, in the first key format of its family.
        class_descriptions: descriptions by class name, if all classes have one.
        exif_orientation: whether the model was trained on images turned upright by their EXIF orientation, if known.
        category_ids: ids of the classes in annotation files, for detectors.
        license: name of the license of the weights, if known.
        task: name of the task of the weights; None to infer it from the model.
        task_options: values of the task's config keys, by dotted name, which an import restores.
        force: replace an existing folder if it contains only such files.
        check: validates the temporary folder before it is moved to `path`; raises if it is invalid.

    Raises:
        WeightsError: the path exists or cannot be written.
    """
    target = check_folder_target(path, force)
    with converting_file_errors(target), scratch_folder(target) as parent:
        draft = parent / target.name
        draft.mkdir()
        config = _timm_config(model, class_names, class_descriptions, exif_orientation, license)
        if category_ids is not None:
            config[CATEGORY_IDS] = list(category_ids)
        if task is not None:
            config[TASK] = {"task": task, "config": dict(task_options)}
        (draft / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        sync(draft / CONFIG_NAME)
        write_tensors(draft / WEIGHTS_NAMES[0], tensors)
        sync(draft)
        if check is not None:
            check(draft)
        commit_folder(draft, target, replace=force)


def _timm_config(
    model: Model,
    class_names: Sequence[str] | None,
    class_descriptions: Mapping[str, str] | None,
    exif_orientation: bool | None,
    license: str | None,
) -> dict[str, Any]:
    args, spec = model_args(model), model.input_spec
    return {
        "architecture": model.name,
        "num_classes": model.num_classes,
        "num_features": model.feature_info[-1].channels,
        "global_pool": model.options.get("global_pool", "avg"),  # families without the option use average pooling
        **({} if class_names is None else {"label_names": list(class_names)}),
        **({} if class_descriptions is None else {"label_descriptions": dict(class_descriptions)}),
        **({} if exif_orientation is None else {EXIF_ORIENTATION: exif_orientation}),
        **({"model_args": args} if args else {}),
        "pretrained_cfg": {
            "custom_load": False,
            **({} if license is None else {"license": license.lower()}),
            "input_size": [model.in_chans, *spec.size],
            "fixed_input_size": "img_size" in model.options,
            "interpolation": spec.interpolation,
            "crop_pct": spec.crop_pct,
            "crop_mode": spec.crop_mode,
            "mean": list(spec.mean),
            "std": list(spec.std),
            "num_classes": model.num_classes,
            "first_conv": ".".join(map(str, model.first_conv)),
            "classifier": ".".join(map(str, model.classifier)),
        },
    }


def check_folder_target(path: str | os.PathLike, force: bool) -> Path:
    """Check that a folder may be written, and return its path without links.

    Raises:
        WeightsError: see `write_folder`.
    """
    if fault := find_unknown_home(path):
        raise WeightsError(f"{path} {fault}")
    target = Path(os.path.realpath(os.path.expanduser(path)))
    if suffix := next((suffix for suffix in _OTHER_FORMATS if target.name.lower().endswith(suffix)), None):
        raise WeightsError(
            f"{path} has the extension of another format, {suffix}; expected a folder, or a file with the "
            f"extension {' or '.join(ENDINGS)}"
        )
    if not os.path.lexists(target):
        return target
    if not target.is_dir():
        raise WeightsError(f"{path} exists and is not a folder; choose another path")
    try:
        entries = list(os.scandir(target))
    except OSError as error:
        raise_machine_fault(error, path)
        raise WeightsError(f"{path} cannot be read ({reason(error)}); choose another folder") from error
    if not entries:
        return target
    if not force:
        raise WeightsError(f"{path} exists; choose another folder, or replace it with --force")
    foreign = sorted(
        entry.name
        for entry in entries
        if entry.name not in (CONFIG_NAME, *WEIGHTS_NAMES) or not entry.is_file(follow_symlinks=False)
    )
    if foreign or CONFIG_NAME not in {entry.name for entry in entries} or len(entries) == 1:
        what = f"contains {foreign[0]!r}" if foreign else "is not a folder in timm's format"
        raise WeightsError(f"{path} {what}, so --force does not replace it; choose another folder")
    return target
