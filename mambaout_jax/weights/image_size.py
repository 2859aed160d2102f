"""Parameters that depend on the image size: detection of the size from shapes, and resampling."""

import bisect
import functools
from collections.abc import Mapping
from typing import Any

import jax

from mambaout_jax.models import Model, ModelError, create_model
from mambaout_jax.models.key_format import KeyFormat
from mambaout_jax.models.options import MIN_SIZE
from mambaout_jax.weights.errors import WeightsError
from mambaout_jax.weights.key_map import Shape, comparable_shapes, expected_shapes, tensor_specs

Size = tuple[int, int]

# Largest side of square images to search for, in pixels.
_MAX_SIDE = 2048


def model_of_weights(
    model: Model, key_format: KeyFormat, shapes: Mapping[str, Shape], img_size: Size | None = None
) -> Model:
    """Return the model at the image size of the weights, so that they can be loaded.

    Args:
        shapes: shapes of the weights.
        img_size: (height, width) of the training images. If None, the model's own size or that of square images, as
            inferred from the shapes.

    Returns:
        `model` itself if the sizes are equal, or if shapes differ for other reasons than the image size.

    Raises:
        WeightsError: all keys match, but the shapes match no square image size.
    """
    if "img_size" not in model.options or img_size == model.input_spec.size:
        return model
    if img_size is None:
        shapes = comparable_shapes(key_format, shapes)
        own = expected_shapes(tensor_specs(model.shapes, key_format))
        if shapes == own:
            return model
        sized = sized_axes(model, key_format)
        if all(shapes.get(key) == own[key] for key in sized):
            return model
        img_size = square_size(model, key_format, shapes)
        if img_size is None and shapes.keys() == own.keys():
            key = next(key for key in sized if shapes[key] != own[key])
            raise WeightsError(
                f"{key} has shape {shapes[key]}, which matches no square image size (the model's own shape is "
                f"{own[key]}); for non-square images, use a folder whose config.json contains the image size"
            )
    try:
        return model if img_size is None else _at_size(model, img_size)
    except ModelError:  # weights of another model, which the comparison of shapes will report
        return model


def resample_variables(model: Model, variables: dict[str, Any], img_size: Size) -> dict[str, Any]:
    """Resample variables that were trained at another image size to the size of the model.

    Args:
        img_size: (height, width) of the training images.

    Raises:
        ModelError: the variables do not match `img_size`.
    """
    leaves, treedef = jax.tree.flatten_with_path(variables["params"])
    params = {tuple(entry.key for entry in path): leaf for path, leaf in leaves}
    resampled = model.resample_params(params, img_size)
    return {**variables, "params": jax.tree.unflatten(treedef, [jax.device_put(resampled[path]) for path in params])}


def sized_axes(model: Model, key_format: KeyFormat) -> dict[str, int]:
    """Return the keys of all tensors whose shapes depend on the image size, with the axis that varies."""
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
    """Return the square image size at which a model has these shapes, or None."""
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


# Cached, because a search builds about ten models, at a tenth of a second each.
@functools.lru_cache(maxsize=256)
def _shapes_at(model: Model, key_format: KeyFormat, img_size: Size) -> dict[str, Shape]:
    sized = model if img_size == model.input_spec.size else _at_size(model, img_size)
    return expected_shapes(tensor_specs(sized.shapes, key_format))
