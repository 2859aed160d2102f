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
from mambaout_jax.checks import ConfigKey, expected_one_of, find_fault
from mambaout_jax.models import localvim, localvmamba, mambaout, mambavision, plainmamba, vim, vit, vmamba
from mambaout_jax.models.api import InputSpec, Model
from mambaout_jax.models.errors import ModelError
from mambaout_jax.models.family import Family, Variant
from mambaout_jax.models.heads import mask_rcnn, upernet
from mambaout_jax.models.heads.head import CLASSIFIER_OPTIONS, Head, compose
from mambaout_jax.models.options import DTYPES, EXECUTION, PREPROCESSING, dtype_name, plain_integers
from mambaout_jax.ops import kernels
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

# Each forms a family with the backbones of every family.
HEADS: tuple[Head, ...] = (upernet.HEAD, mask_rcnn.HEAD)

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
            raise ModelError(f"a plugin has {family!r} in FAMILIES; expected a mambaout_jax.models.Family")
    for kind, names in (
        ("families", [family.name for family in found]),
        ("models", [name for family in found for name in family.variants]),
    ):
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise ModelError(f"two {kind} have the name {twice[0]!r}; remove one of the plugins or rename its {kind}")
    return found


def dense_families() -> tuple[Family, ...]:
    """Return the families of all heads on the backbones of all families."""
    return tuple(compose(head, family) for head in HEADS for family in families())


def split_name(model_name: str) -> tuple[Head | None, str]:
    """Return the head and the name of the backbone of a model; None and its own name for models without a head."""
    for head in HEADS:
        if model_name.startswith(f"{head.name}_"):
            return head, model_name.removeprefix(f"{head.name}_")
    return None, model_name


def find_family(model_name: str) -> Family:
    """Return the family that a variant belongs to; HEAD_BACKBONE is the variant of a head on a backbone.

    Raises:
        ModelError: the name is unknown; the message has the nearest known one.
    """
    head, backbone = split_name(model_name)
    if head is not None:
        return compose(head, find_family(backbone))
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
    """Return the options of `create_model` for a variant: those of its family, of preprocessing and of execution.

    Raises:
        ModelError: the name is unknown.
    """
    return {**find_family(name).options, **PREPROCESSING, **EXECUTION}


def families_with(option: str) -> list[str]:
    """Return the names of the families that have an option."""
    return [family.name for family in families() if option in family.options]


def variant_options(name: str) -> dict[str, Any]:
    """Return every option of a variant with its value.

    Raises:
        ModelError: the name is unknown.
    """
    return find_family(name).variant_options(name)


def create_model(
    name: str, *, backbone: str | None = None, img_size: int | tuple[int, int] | None = None, **options: Any
) -> Model:
    """Build a variant by name.

    Args:
        name: one of `list_models()`, a head such as "upernet", or both, as in "upernet_mambaout_tiny".
        backbone: one of `list_models()` for a head; None for other models.
        img_size: side or (height, width) of the images, 32 px and up; None for the variant's own.
        options: options of the family that differ from the variant's, such as num_classes (0 for no classifier),
            drop_path_rate or dtype (`option_keys(name)` has all of them), fields of its `input_spec`: mean, std,
            crop_pct, crop_mode, interpolation; and `kernels`, how it is computed.

    Raises:
        ModelError: the name or an option is unknown (the message has the nearest one), or a value is out of range.
    """
    name = _with_backbone(name, backbone)
    family = find_family(name)
    variant = family.variants[name]
    keys, own = option_keys(name), variant_options(name)
    given = options if img_size is None else {"img_size": img_size, **options}
    values = {}
    for option, value in given.items():
        if option in _TIMM_ARGUMENTS and option not in keys:
            raise ModelError(f"{option!r} is not an option of create_model; {_TIMM_ARGUMENTS[option]}")
        if option not in keys and (owners := families_with(option)):
            raise ModelError(
                f"{option!r} is an option of {listed(owners)}, not of {name}{expected_one_of(option, sorted(keys))}"
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
    module = _build_module(family, tuple(options.items()))
    try:
        kernels()
    except ValueError as error:  # of the environment
        raise ModelError(str(error)) from error
    execution = {option: values.get(option, key.default) for option, key in EXECUTION.items()}
    return Model(module, name=name, family=family, options=options, input_spec=spec, **execution)


def backbone_of(model: Model) -> Model | None:
    """Return the classifier that the backbone of a model belongs to; None if the model has no head on a backbone."""
    family = model.family.backbone
    if family is None:
        return None
    _, name = split_name(model.name)
    options = {option: model.options[option] for option in family.options if option not in CLASSIFIER_OPTIONS}
    return create_model(name, **{**options, "img_size": model.input_spec.size, "kernels": model.kernels})


def _with_backbone(name: str, backbone: str | None) -> str:
    """Return the full name of a model."""
    names = [head.name for head in HEADS]
    if (name in names) == (backbone is not None):
        return name if backbone is None else f"{name}_{backbone}"
    if backbone is None:
        raise ModelError(f"{name!r} needs a backbone, for example create_model({name!r}, backbone='mambaout_tiny')")
    raise ModelError(f"backbone is {backbone!r}, but {name!r} is not a head; expected one of {', '.join(names)}")


@functools.lru_cache(maxsize=32)
def _build_module(family: Family, items: tuple[tuple[str, Any], ...]) -> nnx.Module:
    """Build the module of a family, without its classifier if num_classes is 0.

    Args:
        items: options with their values.
    """
    options = dict(items)
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
    options = {**model.options, "img_size": preprocessing.pop("size"), **preprocessing, "kernels": model.kernels}
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
                f"{statistic} is {values[statistic]!r}; expected one number per channel, for in_chans {in_chans}"
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
        raise ModelError(f"{name!r} is not a known {what}{expected_one_of(name, known)}")
