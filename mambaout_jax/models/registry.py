"""The list of families, and models of all of them by name."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from mambaout_jax import plugins
from mambaout_jax.checks import is_real, suggest
from mambaout_jax.models import mambaout, vit
from mambaout_jax.models.api import MIN_SIZE, InputSpec, Model
from mambaout_jax.models.errors import ModelError
from mambaout_jax.models.family import Family, Variant

BUILT_IN: tuple[Family, ...] = (mambaout.FAMILY, vit.FAMILY)

# What can be changed of a variant's input preparation, besides the size.
_PREPARATION = ("mean", "std", "crop_pct", "crop_mode", "interpolation")


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


def list_models() -> list[str]:
    """List the names that `create_model` takes, sorted."""
    return sorted(name for family in families() for name in family.variants)


def variant_options(name: str) -> dict[str, Any]:
    """Return every option of a variant with its value.

    Raises:
        ModelError: the name is unknown.
    """
    family = find_family(name)
    variant = family.variants[name]
    options = {option: parameter.default for option, parameter in family.options.items()} | dict(variant.options)
    return options | ({"img_size": (variant.size, variant.size)} if "img_size" in options else {})


def create_model(name: str, *, img_size: int | tuple[int, int] | None = None, **options: Any) -> Model:
    """Build a variant by name.

    Args:
        name: one of `list_models()`.
        img_size: side or (height, width) of the images, 32 px and up; None for the variant's own.
        options: what to change of the variant, by its family's names, and of its `input_spec`: mean, std, crop_pct,
            crop_mode, interpolation.

    Raises:
        ModelError: the name or an option is unknown (the message has the nearest one), or a value is out of range.
    """
    family = find_family(name)
    variant = family.variants[name]
    own = variant_options(name)
    for option in options:
        _require_known(option, (*own, *_PREPARATION), f"option of {name}")
    preparation = {option: options.pop(option) for option in _PREPARATION if option in options}
    options = {**own, **options}
    spec = _input_spec(variant, img_size, options["in_chans"], preparation)
    if "img_size" in own:  # the family's parameters depend on it
        options["img_size"] = spec.size
    return Model(family.module(**options), name=name, family=family, options=options, input_spec=spec)


def _input_spec(
    variant: Variant, img_size: int | tuple[int, int] | None, in_chans: int, preparation: Mapping[str, Any]
) -> InputSpec:
    given = variant.size if img_size is None else img_size
    size = tuple(given) if isinstance(given, tuple | list) else (given, given)
    if len(size) != 2 or not all(isinstance(side, int) and side >= MIN_SIZE for side in size):
        raise ModelError(f"img_size is {img_size}; a side or (height, width) of at least {MIN_SIZE} px is expected")
    for statistic, low in (("mean", -math.inf), ("std", 0.0)):
        values = preparation.get(statistic, (0.5,) * in_chans)
        numbers = isinstance(values, tuple | list) and all(map(is_real, values))
        if not numbers or len(values) != in_chans or not all(low < value < math.inf for value in values):
            raise ModelError(
                f"{statistic} is {values!r}; a {'positive ' if low == 0 else ''}number for each of the {in_chans} "
                "channels is expected"
            )
    rgb = in_chans == 3
    spec = InputSpec(
        mean=variant.mean if rgb else (0.5,) * in_chans,
        std=variant.std if rgb else (0.5,) * in_chans,
        size=size,
        crop_pct=variant.crop_pct,
        crop_mode="center",
        interpolation="bicubic",
    )
    return spec._replace(**preparation)


def _require_known(name: str, known: Iterable[str], what: str) -> None:
    known = sorted(known)
    if name not in known:
        near = suggest(name, known)
        raise ModelError(f"{name!r} is not a known {what}{near or '.'} Known are {', '.join(known)}")
