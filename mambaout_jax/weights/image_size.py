"""Parameters that depend on the size of the images: which these are, for which size, and at another size."""

import bisect
import functools
from collections.abc import Mapping
from typing import Any

import jax

from mambaout_jax.models import Model, ModelError, create_model
from mambaout_jax.models.key_format import KeyFormat
from mambaout_jax.models.options import MIN_SIZE
from mambaout_jax.weights.errors import ConvertError
from mambaout_jax.weights.key_map import Shape, expected_shapes, tensor_specs, without_ignored

Size = tuple[int, int]

# Largest side of square images that shapes are compared with, in pixels.
_MAX_SIDE = 2048


def model_of_weights(
    model: Model, key_format: KeyFormat, shapes: Mapping[str, Shape], img_size: Size | None = None
) -> Model:
    """Return a model at the size of the images that weights were trained on, to load them into.

    Args:
        shapes: of the weights.
        img_size: (height, width) that they were trained at; None if unknown: then the model's own, or else that of
            square images, by the shapes.

    Returns:
        `model` itself at its own size, and where something else than the size of the images differs.

    Raises:
        ConvertError: no square images give the shapes, and all other keys fit.
    """
    if "img_size" not in model.options or img_size == model.input_spec.size:
        return model
    if img_size is None:
        shapes = without_ignored(key_format, shapes)
        own = expected_shapes(tensor_specs(model.shapes, key_format))
        if shapes == own:
            return model
        sized = sized_axes(model, key_format)
        if all(shapes.get(key) == own[key] for key in sized):
            return model
        img_size = square_size(model, key_format, shapes)
        if img_size is None and shapes.keys() == own.keys():
            key = next(key for key in sized if shapes[key] != own[key])
            raise ConvertError(
                f"{key} has shape {shapes[key]} where {own[key]} is expected, or that for other square images, which "
                "is resampled; for images that are not square give a folder whose config.json has their size"
            )
    try:
        return model if img_size is None else _at_size(model, img_size)
    except ModelError:  # other weights than those of this model, which their shapes show
        return model


def resample_variables(model: Model, variables: dict[str, Any], img_size: Size) -> dict[str, Any]:
    """Return variables for images of a model's size, from those for images of another size.

    Args:
        img_size: (height, width) that they were trained at.

    Raises:
        ModelError: they are not those of `img_size`.
    """
    leaves, treedef = jax.tree.flatten_with_path(variables["params"])
    params = {tuple(entry.key for entry in path): leaf for path, leaf in leaves}
    resampled = model.resample_params(params, img_size)
    return {**variables, "params": jax.tree.unflatten(treedef, [jax.device_put(resampled[path]) for path in params])}


def sized_axes(model: Model, key_format: KeyFormat) -> dict[str, int]:
    """Return the keys of tensors whose shapes depend on the size of the images, and the axis that does."""
    if "img_size" not in model.options:
        return {}
    stride = model.feature_info[-1].stride
    height, width = model.input_spec.size
    before = _shapes_at(model, key_format, (height, width))
    after = _shapes_at(model, key_format, (height + stride, width + stride))
    return {
        key: next(axis for axis, (x, y) in enumerate(zip(shape, after[key], strict=True)) if x != y)
        for key, shape in before.items()
        if shape != after[key]
    }


def square_size(model: Model, key_format: KeyFormat, shapes: Mapping[str, Shape]) -> Size | None:
    """Return the size of square images at which a model has tensors of these shapes; None if there is none."""
    stride = model.feature_info[-1].stride
    sides = range(-(-MIN_SIZE // stride) * stride, _MAX_SIDE + 1, stride)
    for key, axis in sized_axes(model, key_format).items():
        shape = shapes.get(key, ())
        if len(shape) <= axis:
            continue

        def length(side: int, key: str = key, axis: int = axis) -> int:
            return _shapes_at(model, key_format, (side, side))[key][axis]

        index = bisect.bisect_left(sides, shape[axis], key=length)
        if index < len(sides) and length(sides[index]) == shape[axis]:
            return sides[index], sides[index]
    return None


def _at_size(model: Model, img_size: Size) -> Model:
    return create_model(model.name, **{**model.options, "img_size": img_size})


# A search compares some ten sizes, of models that take a tenth of a second to build.
@functools.lru_cache(maxsize=256)
def _shapes_at(model: Model, key_format: KeyFormat, img_size: Size) -> dict[str, Shape]:
    sized = model if img_size == model.input_spec.size else _at_size(model, img_size)
    return expected_shapes(tensor_specs(sized.shapes, key_format))
