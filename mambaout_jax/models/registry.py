"""The list of families, and models of all of them by name."""

import copyreg
import fnmatch
import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from flax import nnx

from mambaout_jax import plugins
from mambaout_jax.checks import ConfigKey, find_fault, suggest
from mambaout_jax.models import localvim, localvmamba, mambaout, mambavision, plainmamba, vim, vit, vmamba
from mambaout_jax.models.api import InputSpec, Model
from mambaout_jax.models.errors import ModelError
from mambaout_jax.models.family import Family, Variant
from mambaout_jax.models.options import DTYPES, PREPROCESSING, dtype_name, plain_integers
from mambaout_jax.words import listed

BUILT_IN: tuple[Family, ...] = (
    mambaout.FAMILY,
    vit.FAMILY,
    vim.FAMILY,
    vmamba.FAMILY,
    plainmamba.FAMILY,
    localvim.FAMILY,
    localvmamba.FAMILY,
    mambavision.FAMILY,
)

# Arguments of timm's `create_model` that ours does not have, and what replaces them.
_TIMM_ARGUMENTS: Mapping[str, str] = MappingProxyType(
    {
        "pretrained": "mo.load_pretrained(source) builds a model with its weights",
        "checkpoint_path": "mo.load_pretrained(source) builds a model with its weights",
        "features_only": "model.features(variables, images) computes the feature maps of every model",
    }
)


def families() -> tuple[Family, ...]:
    """Return all families: the built-in ones, then those of plugins.

    Raises:
        ModelError: two families or two variants have one name, or a plugin has something else in FAMILIES.
        PluginError: a plugin cannot be loaded.
    """
    found = (*BUILT_IN, *plugins.provided("FAMILIES"))
    for family in found:
        if not isinstance(family, Family):
            raise ModelError(f"a plugin has {family!r} in FAMILIES; a mambaout_jax.models.Family is expected")
    for kind, names in (
        ("families", [family.name for family in found]),
        ("models", [name for family in found for name in family.variants]),
    ):
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise ModelError(f"two {kind} have the name {twice[0]!r}; remove one of the plugins or rename its {kind}")
    return found


def find_family(model_name: str) -> Family:
    """Return the family that a variant belongs to.

    Raises:
        ModelError: the name is unknown; the message has the nearest known one.
    """
    owners = {name: family for family in families() for name in family.variants}
    _require_known(model_name, owners, "model")
    return owners[model_name]


def list_models(pattern: str | None = None) -> list[str]:
    """List the names that `create_model` takes, sorted.

    Args:
        pattern: only names that match it, with the wildcards of `fnmatch`: "vit*"; None for all.
    """
    names = sorted(name for family in families() for name in family.variants)
    return names if pattern is None else [name for name in names if fnmatch.fnmatchcase(name, pattern)]


def option_keys(name: str) -> dict[str, ConfigKey]:
    """Return the options of `create_model` for a variant: those of its family, and of the preprocessing of images.

    Raises:
        ModelError: the name is unknown.
    """
    return {**find_family(name).options, **PREPROCESSING}


def families_with(option: str) -> list[str]:
    """Return the names of the families that have an option."""
    return [family.name for family in families() if option in family.options]


def variant_options(name: str) -> dict[str, Any]:
    """Return every option of a variant with its value.

    Raises:
        ModelError: the name is unknown.
    """
    return find_family(name).variant_options(name)


def create_model(name: str, *, img_size: int | tuple[int, int] | None = None, **options: Any) -> Model:
    """Build a variant by name.

    Args:
        name: one of `list_models()`.
        img_size: side or (height, width) of the images, 32 px and up; None for the variant's own.
        options: options of the family that differ from the variant's, such as num_classes (0 for no classifier),
            drop_path_rate or dtype (`option_keys(name)` has all of them), and fields of its `input_spec`: mean, std,
            crop_pct, crop_mode, interpolation.

    Raises:
        ModelError: the name or an option is unknown (the message has the nearest one), or a value is out of range.
    """
    family = find_family(name)
    variant = family.variants[name]
    keys, own = option_keys(name), variant_options(name)
    given = options if img_size is None else {"img_size": img_size, **options}
    values = {}
    for option, value in given.items():
        if option in _TIMM_ARGUMENTS and option not in keys:
            raise ModelError(f"{option!r} is not an option of create_model; {_TIMM_ARGUMENTS[option]}")
        if option not in keys and (owners := families_with(option)):
            near = suggest(option, keys) or ";"
            raise ModelError(
                f"{option!r} is an option of {listed(owners)}, not of {name}{near} expected one of "
                f"{', '.join(sorted(keys))}"
            )
        _require_known(option, keys, f"option of {name}")
        value = dtype_name(value) if keys[option].accept == DTYPES else plain_integers(value)
        if fault := find_fault(option, keys[option], value):
            raise ModelError(fault)
        values[option] = value
    spec = _input_spec(variant, values.get("in_chans", own["in_chans"]), values)
    options = {option: value for option, value in {**own, **values}.items() if option in own}
    if "img_size" in own:  # the family's parameters depend on it
        options["img_size"] = spec.size
    return Model(_build_module(family, options), name=name, family=family, options=options, input_spec=spec)


def _build_module(family: Family, options: Mapping[str, Any]) -> nnx.Module:
    """Build the module of a family, without its classifier if num_classes is 0."""
    if options["num_classes"]:
        return family.module(**options)
    module = family.module(**{**options, "num_classes": 1})
    *path, layer = module.classifier
    owner = functools.reduce(
        lambda node, name: node[name] if isinstance(name, int) else getattr(node, name), path, module
    )
    delattr(owner, layer)
    return module


def _reduce(model: Model) -> tuple[Any, ...]:
    """Return what `pickle` stores of a model: its plugins, its name and all of its options."""
    preprocessing = model.input_spec._asdict()
    options = {**model.options, "img_size": preprocessing.pop("size"), **preprocessing}
    return _restore, (plugins.loaded(), model.name, options)


def _restore(plugin_names: Sequence[str], name: str, options: Mapping[str, Any]) -> Model:
    plugins.load(plugin_names)
    return create_model(name, **options)


copyreg.pickle(Model, _reduce)


def _input_spec(variant: Variant, in_chans: int, values: Mapping[str, Any]) -> InputSpec:
    """Return the preprocessing of a variant, with the given values."""
    for statistic in ("mean", "std"):
        if len(values.get(statistic, range(in_chans))) != in_chans:
            raise ModelError(
                f"{statistic} is {values[statistic]!r}; one number per channel, for in_chans {in_chans}, is expected"
            )
    size = values.get("img_size", variant.size)
    rgb = in_chans == 3
    spec = InputSpec(
        mean=variant.mean if rgb else (0.5,) * in_chans,
        std=variant.std if rgb else (0.5,) * in_chans,
        size=size if isinstance(size, tuple) else (size, size),
        crop_pct=variant.crop_pct,
        crop_mode=variant.crop_mode,
        interpolation="bicubic",
    )
    return spec._replace(**{field: values[field] for field in spec._fields if field in values})


def _require_known(name: str, known: Iterable[str], what: str) -> None:
    known = sorted(known)
    if name not in known:
        near = suggest(name, known)
        raise ModelError(f"{name!r} is not a known {what}{near or ';'} expected one of {', '.join(known)}")
