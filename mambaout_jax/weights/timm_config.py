"""timm's config.json: architecture, options and preprocessing of a model."""

import json
import os
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from mambaout_jax.checks import find_fault, nearest_names, shorten
from mambaout_jax.errors import printable, reason
from mambaout_jax.machine import raise_machine_fault
from mambaout_jax.models import find_family, list_models, split_name
from mambaout_jax.weights.errors import WeightsError
from mambaout_jax.words import count

CONFIG_NAME = "config.json"
# An entry of this package. It is at the top level, because timm takes all of pretrained_cfg as arguments.
EXIF_ORIENTATION = "exif_orientation"
CATEGORY_IDS = "category_ids"
# Another one: {"task": name, "config": values by dotted key}.
TASK = "mambaout_jax"


class TimmConfig(NamedTuple):
    """The contents of timm's config.json.

    Args:
        architecture: name of a variant, without the tag of its weights.
        options: options for `create_model`.
        preprocessing: options for `create_model` that set its `input_spec`, as far as the file has them.
        exif_orientation: whether the model was trained on images that were turned upright by their EXIF orientation;
            None in files of timm, which has no such entry and ignores it.
        category_ids: ids of the classes in annotation files, if the file has them.
        license: name of the license of the weights, if the file has it.
        task: name of the task that the weights were trained for, if the file has it.
        task_options: the recorded values of the task's config keys, by dotted name.
    """

    architecture: str
    options: dict[str, Any]
    preprocessing: dict[str, Any]
    class_names: tuple[str, ...] | None
    exif_orientation: bool | None = None
    category_ids: list[int] | None = None
    license: str | None = None
    task: str | None = None
    task_options: Mapping[str, Any] = MappingProxyType({})


class _Kind(NamedTuple):
    """A valid kind of values: a description for messages and a predicate."""

    description: str
    fits: Callable[[Any], bool]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -(2**31) < value < 2**31


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _list_of(fits: Callable[[Any], bool], length: int | None = None) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, list) and len(value) > 0 and length in (None, len(value)) and all(map(fits, value))
    )


_CLASSES = _Kind("an integer of at least 0", lambda value: _is_count(value) or (value == 0 and value is not False))
_BOOLEAN = _Kind("true or false", lambda value: isinstance(value, bool))
_STRING = _Kind("a string", lambda value: isinstance(value, str))
_IDS = _Kind("a list of integers", _list_of(lambda value: _is_number(value) and isinstance(value, int)))
_SIZE = _Kind("[channels, height, width]", _list_of(_is_count, 3))

_CROP = _Kind("a number from 0.1 to 1", lambda value: _is_number(value) and 0.1 <= value <= 1)
_OBJECT = _Kind("a JSON object", lambda value: isinstance(value, dict))
# For families without the option.
_AVERAGE = _Kind("'avg', the only pooling of the model,", lambda value: value == "avg")


def read_config(path: str, origin: str) -> TimmConfig:
    """Read a config.json of timm, in the current or the old flat layout.

    Entries that concern neither the model nor its input are ignored.

    Args:
        origin: path or hub id as typed by the user, the prefix of every message.

    Raises:
        WeightsError: the file is damaged or does not describe one of our models.
    """
    config = _load(path, origin)
    inner = _get(config, "pretrained_cfg", _OBJECT, origin)
    prepared = config if inner is None else inner
    architecture = _architecture(_get(config, "architecture", _STRING, origin), origin)
    args = dict(_get(config, "model_args", _OBJECT, origin) or {})
    given = [_get(part, "num_classes", _CLASSES, origin) for part in (config, prepared, args)]
    num_classes = [value for value in given if value is not None]
    args_classes = args.pop("num_classes", None)
    options = _options(args, architecture, origin)
    if "global_pool" in find_family(architecture).options:
        if pool := _get(config, "global_pool", _STRING, origin):
            options.setdefault("global_pool", pool)
    else:
        _get(config, "global_pool", _AVERAGE, origin)
    size = _get(prepared, "input_size", _SIZE, origin)
    if size is not None:
        options.setdefault("in_chans", size[0])
    if num_classes and num_classes[0]:  # timm writes 0 for weights without a last layer
        options["num_classes"] = num_classes[0]
    if args_classes is not None and args_classes != num_classes[0]:
        raise WeightsError(
            f"{origin}: {CONFIG_NAME} has num_classes {num_classes[0]} and, in model_args, {args_classes}; expected "
            "equal numbers"
        )
    labels = next(
        (part[key] for part in (config, prepared) for key in ("label_names", "labels") if part.get(key)), None
    )
    record = _get(config, TASK, _OBJECT, origin) or {}
    task_options = _get(record, "config", _OBJECT, origin) or {}
    return TimmConfig(
        architecture,
        options,
        _preprocessing(prepared, size, options, origin),
        _class_names(labels, options, origin),
        _get(config, EXIF_ORIENTATION, _BOOLEAN, origin),
        _get(config, CATEGORY_IDS, _IDS, origin),
        _get(prepared, "license", _STRING, origin),
        _get(record, "task", _STRING, origin),
        {key: tuple(value) if isinstance(value, list) else value for key, value in task_options.items()},
    )


def _load(path: str, origin: str) -> dict[str, Any]:
    if not os.path.isfile(path):
        raise WeightsError(f"{origin} has no file {CONFIG_NAME}; expected a folder in timm's format")
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file, object_pairs_hook=_without_duplicates)
    except OSError as error:
        raise_machine_fault(error, path)
        raise WeightsError(f"{origin}: {CONFIG_NAME} cannot be read ({reason(error)}); replace the file") from error
    except RecursionError as error:
        raise WeightsError(f"{origin}: {CONFIG_NAME} is nested too deeply; expected timm's format") from error
    except ValueError as error:
        words = str(error).splitlines()[0]
        raise WeightsError(
            f"{origin}: {CONFIG_NAME} is not valid JSON ({words:.100}); expected timm's format"
        ) from error
    if not isinstance(config, dict):
        raise WeightsError(f"{origin}: {CONFIG_NAME} contains {shorten(config)}; expected a JSON object")
    return config


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r:.60} occurs twice")
    return dict(pairs)


def _get(part: Mapping[str, Any], key: str, kind: _Kind, origin: str) -> Any:
    """Return a valid value, or None if the key is absent."""
    value = part.get(key)
    if value is not None and not kind.fits(value):
        raise WeightsError(f"{origin}: {CONFIG_NAME} has {key} {shorten(value)}; expected {kind.description}")
    return value


def _architecture(value: str | None, origin: str) -> str:
    if value is None:
        raise WeightsError(f"{origin}: {CONFIG_NAME} has no architecture; expected timm's format")
    name = value.split(".")[0]  # the rest is the tag of the weights
    known, (_, backbone) = list_models(), split_name(name)
    if backbone not in known:
        [near] = nearest_names(backbone[:100], known)
        raise WeightsError(
            f"{origin}: {CONFIG_NAME} has architecture {shorten(value)}, which is not a known model; the nearest is "
            f"{near!r}; python -m mambaout_jax models lists all"
        )
    return name


def _options(model_args: Mapping[str, Any], architecture: str, origin: str) -> dict[str, Any]:
    keys = find_family(architecture).options
    options = {}
    for name, value in model_args.items():
        if name == "global_pool" and name not in keys:
            _get(model_args, name, _AVERAGE, origin)
            continue
        if name not in keys:
            raise WeightsError(
                f"{origin}: model_args in {CONFIG_NAME} has {shorten(name)}, not an option of {architecture}; "
                f"expected one of {', '.join(sorted(keys))}"
            )
        if fault := find_fault(name, keys[name], value):
            raise WeightsError(f"{origin}: model_args in {CONFIG_NAME}: {fault}")
        options[name] = tuple(value) if isinstance(value, list) else value
    return options


def _preprocessing(
    prepared: Mapping[str, Any], size: list[int] | None, options: Mapping[str, Any], origin: str
) -> dict[str, Any]:
    channels = options.get("in_chans", 3)
    numbers = _Kind(f"a list of {count(channels, 'number')}, one per channel,", _list_of(_is_number, channels))
    positive = _Kind(
        f"a list of {count(channels, 'positive number')}, one per channel,", _list_of(_is_positive, channels)
    )
    found = {
        # As in timm, the option of the model takes precedence.
        "img_size": options.get("img_size", None if size is None else tuple(size[1:])),
        "mean": _get(prepared, "mean", numbers, origin),
        "std": _get(prepared, "std", positive, origin),
        "crop_pct": _get(prepared, "crop_pct", _CROP, origin),
        "crop_mode": _get(prepared, "crop_mode", _STRING, origin),
        "interpolation": _get(prepared, "interpolation", _STRING, origin),
    }
    return {
        key: tuple(value) if isinstance(value, list) else value for key, value in found.items() if value is not None
    }


def _class_names(labels: Any, options: Mapping[str, Any], origin: str) -> tuple[str, ...] | None:
    if labels is None:
        return None
    names = labels
    if isinstance(labels, dict):
        names = [labels.get(str(index)) for index in range(len(labels))]
    if not isinstance(names, list) or not all(isinstance(name, str) and printable(name) == name for name in names):
        raise WeightsError(
            f"{origin}: {CONFIG_NAME} has label_names {shorten(labels)}; expected a list of strings, one per class"
        )
    if len(names) != options.get("num_classes", len(names)):
        raise WeightsError(
            f"{origin}: {CONFIG_NAME} has {len(names)} label_names where num_classes is {options['num_classes']}; "
            "expected one per class"
        )
    return tuple(names)
