"""timm's config.json: the model of a folder, and how its images are prepared."""

import json
import os
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mambaout_jax.checks import find_fault, nearest
from mambaout_jax.models import find_family, list_models
from mambaout_jax.weights.errors import ConvertError

CONFIG_NAME = "config.json"


class TimmConfig(NamedTuple):
    """The contents of timm's config.json.

    Args:
        architecture: a variant of ours, without the tag of its weights.
        options: what `create_model` takes to build it.
        preparation: what `create_model` takes for its `input_spec`, as far as it is there.
    """

    architecture: str
    options: dict[str, Any]
    preparation: dict[str, Any]
    class_names: tuple[str, ...] | None


class _Kind(NamedTuple):
    """What a value has to be, in words and as a test."""

    words: str
    fits: Callable[[Any], bool]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -(2**31) < value < 2**31


def _are(fits: Callable[[Any], bool], length: int | None = None) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, list) and len(value) > 0 and length in (None, len(value)) and all(map(fits, value))
    )


_COUNT = _Kind("a whole number above 0", _is_count)
_WORD = _Kind("a word", lambda value: isinstance(value, str))
_SIZE = _Kind("[channels, height, width]", _are(_is_count, 3))
_SHARE = _Kind("a number above 0", lambda value: _is_number(value) and value > 0)
_CROP = _Kind("a number from 0.1 to 1", lambda value: _is_number(value) and 0.1 <= value <= 1)
_OBJECT = _Kind("a JSON object", lambda value: isinstance(value, dict))
# Of a family without the option.
_AVERAGE = _Kind("'avg', the pooling that the models have,", lambda value: value == "avg")


def read_config(path: str, origin: str) -> TimmConfig:
    """Read a config.json of timm, in its present form or the old flat one.

    What does not concern the model or its input is ignored.

    Args:
        origin: of the folder, as the user typed it; begins every message.

    Raises:
        ConvertError: it is damaged, or something in it does not fit a model of ours.
    """
    config = _load(path, origin)
    inner = _get(config, "pretrained_cfg", _OBJECT, origin)
    prepared = config if inner is None else inner
    architecture = _architecture(_get(config, "architecture", _WORD, origin), origin)
    options = _options(_get(config, "model_args", _OBJECT, origin) or {}, architecture, origin)
    if "global_pool" in _annotations(architecture):
        if pool := _get(config, "global_pool", _WORD, origin):
            options.setdefault("global_pool", pool)
    else:
        _get(config, "global_pool", _AVERAGE, origin)
    size = _get(prepared, "input_size", _SIZE, origin)
    if size is not None:
        options.setdefault("in_chans", size[0])
    num_classes = _get(config, "num_classes", _COUNT, origin) or _get(prepared, "num_classes", _COUNT, origin)
    if num_classes is not None and options.setdefault("num_classes", num_classes) != num_classes:
        raise ConvertError(
            f"{origin}: {CONFIG_NAME} has num_classes {num_classes} and, in model_args, {options['num_classes']}; "
            "one number is expected"
        )
    labels = next(
        (part[key] for part in (config, prepared) for key in ("label_names", "labels") if part.get(key)), None
    )
    return TimmConfig(
        architecture, options, _preparation(prepared, size, options, origin), _class_names(labels, options, origin)
    )


def _load(path: str, origin: str) -> dict[str, Any]:
    if not os.path.isfile(path):
        raise ConvertError(f"{origin} has no file {CONFIG_NAME}; a folder in timm's format is expected")
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file, object_pairs_hook=_without_duplicates)
    except OSError as error:
        raise ConvertError(
            f"{origin}: {CONFIG_NAME} cannot be read ({error.strerror}); check its permissions"
        ) from error
    except RecursionError as error:
        raise ConvertError(f"{origin}: {CONFIG_NAME} is nested too deeply; one that timm wrote is expected") from error
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise ConvertError(f"{origin}: {CONFIG_NAME} is not the JSON that timm writes ({reason:.100})") from error
    if not isinstance(config, dict):
        raise ConvertError(f"{origin}: {CONFIG_NAME} contains {_short(config)}; a JSON object is expected")
    return config


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r:.60} stands there twice")
    return dict(pairs)


def _get(part: Mapping[str, Any], key: str, kind: _Kind, origin: str) -> Any:
    """Return a value that fits, or None if there is none."""
    value = part.get(key)
    if value is not None and not kind.fits(value):
        raise ConvertError(f"{origin}: {CONFIG_NAME} has {key} {_short(value)}; {kind.words} is expected")
    return value


def _short(value: Any) -> str:
    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = 60
    return shortener.repr(value)


def _architecture(value: str | None, origin: str) -> str:
    if value is None:
        raise ConvertError(f"{origin}: {CONFIG_NAME} has no architecture; one that timm wrote is expected")
    name = value.split(".")[0]  # what follows names the weights
    known = list_models()
    if name not in known:
        near = nearest(name[:100], known)
        raise ConvertError(
            f"{origin}: {CONFIG_NAME} has architecture {_short(value)}, which is not a known model; the nearest is "
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
            raise ConvertError(
                f"{origin}: model_args in {CONFIG_NAME} has {_short(name)}, which is not an option of {architecture}; "
                f"known are {', '.join(sorted(keys))}"
            )
        if fault := find_fault(name, keys[name], value):
            raise ConvertError(f"{origin}: model_args in {CONFIG_NAME}: {fault}")
        options[name] = tuple(value) if isinstance(value, list) else value
    return options


def _preparation(
    prepared: Mapping[str, Any], size: list[int] | None, options: Mapping[str, Any], origin: str
) -> dict[str, Any]:
    channels = options.get("in_chans", 3)
    share = f"a list of {channels} numbers, one for each channel,"
    deviation = _Kind(f"{share} above 0", _are(_SHARE.fits, channels))
    found = {
        # timm too builds a model by its own option first.
        "img_size": options.get("img_size", None if size is None else tuple(size[1:])),
        "mean": _get(prepared, "mean", _Kind(share, _are(_is_number, channels)), origin),
        "std": _get(prepared, "std", deviation, origin),
        "crop_pct": _get(prepared, "crop_pct", _CROP, origin),
        "crop_mode": _get(prepared, "crop_mode", _WORD, origin),
        "interpolation": _get(prepared, "interpolation", _WORD, origin),
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
    if not isinstance(names, list) or not all(isinstance(name, str) and name.isprintable() for name in names):
        raise ConvertError(
            f"{origin}: {CONFIG_NAME} has label_names {_short(labels)}; a list of words, one a class, is expected"
        )
    if len(names) != options.get("num_classes", len(names)):
        raise ConvertError(
            f"{origin}: {CONFIG_NAME} has {len(names)} label_names where num_classes is {options['num_classes']}; one "
            "for each class is expected"
        )
    return tuple(names)
