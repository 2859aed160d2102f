"""Identification of the model of given weights, by config.json or by the names and shapes of the tensors."""

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mambaout_jax.models import Family, Model, create_model, find_family, variant_options
from mambaout_jax.models.key_format import KeyFormat
from mambaout_jax.weights.checkpoint import TorchCheckpoint
from mambaout_jax.weights.errors import WeightsError, naming_source
from mambaout_jax.weights.image_size import sized_axes, square_size
from mambaout_jax.weights.key_map import (
    Shape,
    TensorSpec,
    comparable_shapes,
    expected_shapes,
    matching_formats,
    tensor_specs,
)
from mambaout_jax.weights.options import other_options
from mambaout_jax.weights.state_dict import classifier_shapes, differences
from mambaout_jax.words import count, listed

# Of a tensor; NumPy cannot represent the shapes of much larger arrays.
_MAX_ELEMENTS = 2**40


class UnknownVariantError(WeightsError):
    """Weights whose variant is ambiguous or unknown; with its name, they can be compared or loaded."""


class ResolvedModel(NamedTuple):
    """The model of given weights.

    Args:
        key_format: key format of the weights.
        name: name for `create_model`.
        options: options for `create_model`.
        others: names of other variants with these shapes, which may differ in other respects (`check_unambiguous`).
    """

    key_format: KeyFormat
    name: str
    options: dict[str, Any]
    others: tuple[str, ...] = ()


def resolve_model(checkpoint: TorchCheckpoint, name: str | None = None) -> ResolvedModel:
    """Identify the model of given weights by config.json, or else by comparing shapes with every variant.

    Args:
        name: name of the variant, if known; then only the number of classes, the input channels and the image size are
            inferred from the shapes.

    Raises:
        WeightsError: the keys match no known family, no variant has exactly these shapes, or config.json names another
            variant.
    """
    with naming_source(checkpoint.origin):
        return _resolve(checkpoint, name)


def _resolve(checkpoint: TorchCheckpoint, name: str | None) -> ResolvedModel:
    config = checkpoint.config
    if config is None and name is None:
        return resolve_shapes(checkpoint.shapes)
    _, key_format = matching_formats(checkpoint.shapes, prefer=None if name is None else find_family(name))[0]
    if config is None:
        return ResolvedModel(key_format, name, _data_options(name, key_format, checkpoint.shapes))
    if name not in (None, config.architecture):
        raise WeightsError(f"config.json has architecture {config.architecture}; expected {name}")
    return ResolvedModel(key_format, config.architecture, {**config.options, **config.preprocessing})


def resolve_shapes(shapes: Mapping[str, Shape]) -> ResolvedModel:
    """Identify the model of a state dict by comparing shapes with every variant.

    Raises:
        WeightsError: the keys match no known family, or no variant has exactly these shapes.
    """
    fits, faults = [], {}
    for family, key_format in matching_formats(shapes):
        for variant in family.variants:
            options, num_faults = _compare(variant, key_format, comparable_shapes(key_format, shapes))
            faults[variant] = min(num_faults, faults.get(variant, num_faults))
            if not num_faults:
                fits.append(ResolvedModel(key_format, variant, options))
    if not fits:
        nearest = min(faults, key=faults.__getitem__)
        tensors = count(faults[nearest], "tensor")
        raise UnknownVariantError(
            f"no variant has exactly these tensors; the closest, {nearest}, differs in {tensors}: name the variant, or "
            "use a folder with a config.json"
        )
    # Weights of one stride have the shapes of another stride at another image size. Models are rarely trained on
    # smaller images than the published ones.
    fits = [fit for fit in fits if not _is_reduced(fit)] or fits
    first, *others = sorted(fits, key=lambda fit: "img_size" in fit.options)
    return first._replace(others=tuple(other.name for other in others))


def _is_reduced(fit: ResolvedModel) -> bool:
    """Return whether the images of the weights are smaller than those of the variant."""
    return "img_size" in fit.options and fit.options["img_size"] < tuple(variant_options(fit.name)["img_size"])


def check_not_reduced(
    checkpoint: TorchCheckpoint, resolved: ResolvedModel, img_size: int | tuple[int, int] | None = None
) -> None:
    """Check that a named variant whose images would be smaller than the published ones is the only one that fits.

    Args:
        img_size: size that weights are resampled to; None for their own, which is checked.

    Raises:
        WeightsError: another variant fits at its own image size.
    """
    if img_size is not None or checkpoint.config is not None or not _is_reduced(resolved):
        return
    try:
        found = resolve_shapes(checkpoint.shapes)
    except WeightsError:
        return
    if resolved.name not in (found.name, *found.others) and "img_size" not in found.options:
        size = "x".join(map(str, resolved.options["img_size"]))
        raise WeightsError(
            f"{checkpoint.origin}: the weights are those of {found.name}; as {resolved.name} they would be for images "
            f"of {size} px only; load them as {found.name} (--model {found.name})"
        )


def check_unambiguous(origin: str, resolved: ResolvedModel) -> None:
    """Check that all variants with the shapes of the weights are the same model with the same preprocessing.

    Raises:
        UnknownVariantError: two of them differ.
    """
    if different := sorted({word for other in resolved.others for word in _distinctions(resolved.name, other)}):
        raise UnknownVariantError(
            f"{origin}: {listed((resolved.name, *resolved.others))} have these tensors but differ in "
            f"{listed(different)}; name the variant, for example {resolved.name}"
        )


def _distinctions(name: str, other: str) -> set[str]:
    """Return what differs between two variants in inference: options, preprocessing or the family."""
    families = find_family(name), find_family(other)
    if families[0] is not families[1]:
        return {"the family"}
    options = other_options(families[0], variant_options(name), variant_options(other))
    specs = create_model(name).input_spec._asdict(), create_model(other).input_spec._asdict()
    return {*options, *(field for field, value in specs[0].items() if value != specs[1][field])} - {"img_size"}


def _compare(name: str, key_format: KeyFormat, shapes: Mapping[str, Shape]) -> tuple[dict[str, Any], int]:
    """Return the options with which a variant best matches the shapes, and the number of tensors that still differ."""
    family, own = find_family(name), variant_options(name)
    if not _can_express(family, own, key_format):
        return {}, len(shapes)
    found = differences(shapes, _shapes(family, name, key_format))
    if num_faults := len(found.keys() - _keys_of_data(family, name, key_format)):
        return {}, num_faults
    options = _data_options(name, key_format, shapes)
    options = {key: value for key, value in options.items() if value != own[key]}
    # Weights without a last layer fit; where it is needed, loading them reports it.
    last_layer = classifier_shapes(_build(family, name), key_format)
    complete = shapes if last_layer.keys() & shapes.keys() else {**shapes, **last_layer}
    return options, len(differences(complete, _shapes(family, name, key_format, **options)))


def _data_options(name: str, key_format: KeyFormat, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Infer num_classes, in_chans, and img_size if parameters depend on it, from the shapes."""
    family, own = find_family(name), variant_options(name)
    if not _can_express(family, own, key_format):
        return {}  # the conversion reports it
    model, options = _build(family, name), {}
    # Our weights are (..., in, out).
    for option, layer, axis in (("num_classes", model.classifier, -1), ("in_chans", model.first_conv, -2)):
        for spec in _specs(family, name, key_format):
            shape = shapes.get(spec.keys[0], ())
            is_weight = spec.paths[0][1:] == (*layer, "weight") and len(shape) == len(spec.shape)
            if is_weight and 0 < math.prod(shape) < _MAX_ELEMENTS:
                options[option] = spec.transform.from_torch(np.broadcast_to(np.zeros(()), shape)).shape[axis]
    if size := square_size(model, key_format, shapes):
        options["img_size"] = size
    return options


def _can_express(family: Family, options: Mapping[str, Any], key_format: KeyFormat) -> bool:
    return key_format in family.key_formats and all(options[key] == value for key, value in key_format.fixed.items())


def _keys_of_data(family: Family, name: str, key_format: KeyFormat) -> set[str]:
    """Return the keys of all tensors whose shapes depend on num_classes, in_chans or img_size."""
    model = _build(family, name)
    layers = (model.first_conv, *model.output_layers)
    keys = {key for spec in _specs(family, name, key_format) if spec.paths[0][1:-1] in layers for key in spec.keys}
    return keys | sized_axes(model, key_format).keys()


# Cached, because building all variants of a family takes a second.
@functools.cache
def _build(family: Family, name: str, **options: Any) -> Model:
    return create_model(name, **options)


@functools.cache
def _specs(family: Family, name: str, key_format: KeyFormat, **options: Any) -> list[TensorSpec]:
    return tensor_specs(_build(family, name, **options).shapes, key_format)


def _shapes(family: Family, name: str, key_format: KeyFormat, **options: Any) -> dict[str, Shape]:
    return expected_shapes(_specs(family, name, key_format, **options))
