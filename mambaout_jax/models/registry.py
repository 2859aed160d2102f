"""The list of families, and models of all of them by name."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from mambaout_jax import plugins
from mambaout_jax.checks import ConfigKey, find_fault, suggest
from mambaout_jax.models import mambaout, plainmamba, vit
from mambaout_jax.models.api import InputSpec, Model
from mambaout_jax.models.errors import ModelError
from mambaout_jax.models.family import Family, Recipe, Variant
from mambaout_jax.models.options import PREPROCESSING

BUILT_IN: tuple[Family, ...] = (mambaout.FAMILY, vit.FAMILY, plainmamba.FAMILY)


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


def find_recipe(model_name: str) -> Recipe | None:
    """Return the published training recipe of a variant, or None if there is none.

    Raises:
        ModelError: the name is unknown.
    """
    family = find_family(model_name)
    changed = family.variants[model_name].recipe
    if family.recipe is None or not changed:
        return family.recipe
    return replace(family.recipe, values=MappingProxyType({**family.recipe.values, **changed}))


def list_models() -> list[str]:
    """List the names that `create_model` takes, sorted."""
    return sorted(name for family in families() for name in family.variants)


def option_keys(name: str) -> dict[str, ConfigKey]:
    """Return the options of `create_model` for a variant: those of its family, and of the preprocessing of images.

    Raises:
        ModelError: the name is unknown.
    """
    return {**find_family(name).options, **PREPROCESSING}


def variant_options(name: str) -> dict[str, Any]:
    """Return every option of a variant with its value.

    Raises:
        ModelError: the name is unknown.
    """
    family = find_family(name)
    variant = family.variants[name]
    options = {option: key.default for option, key in family.options.items()} | dict(variant.options)
    return options | ({"img_size": (variant.size, variant.size)} if "img_size" in options else {})


def create_model(name: str, *, img_size: int | tuple[int, int] | None = None, **options: Any) -> Model:
    """Build a variant by name.

    Args:
        name: one of `list_models()`.
        img_size: side or (height, width) of the images, 32 px and up; None for the variant's own.
        options: options of the family that differ from the variant's, such as num_classes, drop_path_rate or dtype
            (`option_keys(name)` has all of them), and fields of its `input_spec`: mean, std, crop_pct, crop_mode,
            interpolation.

    Raises:
        ModelError: the name or an option is unknown (the message has the nearest one), or a value is out of range.
    """
    family = find_family(name)
    variant = family.variants[name]
    keys, own = option_keys(name), variant_options(name)
    given = options if img_size is None else {"img_size": img_size, **options}
    for option, value in given.items():
        _require_known(option, keys, f"option of {name}")
        if fault := find_fault(option, keys[option], value):
            raise ModelError(fault)
    values = {option: tuple(value) if isinstance(value, list) else value for option, value in given.items()}
    spec = _input_spec(variant, values.get("in_chans", own["in_chans"]), values)
    options = {option: value for option, value in {**own, **values}.items() if option in own}
    if "img_size" in own:  # the family's parameters depend on it
        options["img_size"] = spec.size
    return Model(family.module(**options), name=name, family=family, options=options, input_spec=spec)


def _input_spec(variant: Variant, in_chans: int, values: Mapping[str, Any]) -> InputSpec:
    """Return the preprocessing of a variant, with the given values."""
    for statistic in ("mean", "std"):
        if len(values.get(statistic, range(in_chans))) != in_chans:
            raise ModelError(
                f"{statistic} is {values[statistic]!r}; a number for each of the {in_chans} channels is expected"
            )
    size = values.get("img_size", variant.size)
    rgb = in_chans == 3
    spec = InputSpec(
        mean=variant.mean if rgb else (0.5,) * in_chans,
        std=variant.std if rgb else (0.5,) * in_chans,
        size=size if isinstance(size, tuple) else (size, size),
        crop_pct=variant.crop_pct,
        crop_mode="center",
        interpolation="bicubic",
    )
    return spec._replace(**{field: values[field] for field in spec._fields if field in values})


def _require_known(name: str, known: Iterable[str], what: str) -> None:
    known = sorted(known)
    if name not in known:
        near = suggest(name, known)
        raise ModelError(f"{name!r} is not a known {what}{near or ';'} expected one of {', '.join(known)}")
