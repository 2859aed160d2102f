"""Conversion of PyTorch state dicts to variables and back; the match is exact in both directions."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jaxtyping import Array, Key

from mambaout_jax.models import Model
from mambaout_jax.models.api import ParamPath
from mambaout_jax.models.key_format import KeyFormat
from mambaout_jax.weights.errors import MisfitError, WeightsError
from mambaout_jax.weights.image_size import model_of_weights, resample_variables
from mambaout_jax.weights.key_map import (
    Shape,
    TensorSpec,
    comparable_shapes,
    expected_shapes,
    matching_formats,
    tensor_specs,
)
from mambaout_jax.words import count

# Both convert to float32 without loss. float16 is rejected, because trained weights overflow or underflow in it.
DTYPES = ("float32", "bfloat16")
# Differences that an error lists; `convert inspect` lists all.
MAX_FAULTS = 6


def get_format(model: Model, name: str | None = None) -> KeyFormat:
    """Return a key format of the family that can express the model.

    Args:
        name: name of the format; None for the first of the family.

    Raises:
        WeightsError: the name is unknown, or the format cannot express an option.
    """
    formats = {key_format.name: key_format for key_format in model.family.key_formats}
    key_format = next(iter(formats.values())) if name is None else formats.get(name)
    if key_format is None:
        raise WeightsError(f"{model.name} has no key format {name!r}; expected one of {', '.join(formats)}")
    if faults := [
        f"{key} is {model.options[key]!r}" for key, value in key_format.fixed.items() if model.options[key] != value
    ]:
        others = ", ".join(f"{key} {value!r}" for key, value in key_format.fixed.items())
        raise WeightsError(
            f"key format {key_format.name!r} cannot express {model.name}: {'; '.join(faults)}; it supports only "
            f"{others}"
        )
    return key_format


def detect_format(model: Model, shapes: Mapping[str, Shape]) -> KeyFormat:
    """Return the key format of a state dict for a model.

    Raises:
        MisfitError: its format cannot express the model.
        WeightsError: the state dict belongs to another family.
    """
    family, key_format = matching_formats(shapes, prefer=model.family)[0]
    if family is not model.family:
        raise WeightsError(
            f"the weights belong to a {family.module.__name__}; expected a {model.family.module.__name__}"
        )
    try:
        return get_format(model, key_format.name)
    except WeightsError as error:
        raise MisfitError(str(error)) from error


def differences(shapes: Mapping[str, Shape], expected: Mapping[str, Shape]) -> dict[str, str]:
    """Return a description of each tensor that is missing, unexpected or of another shape, by name."""
    faults = {}
    for name in sorted(shapes.keys() | expected.keys()):
        if name not in shapes:
            faults[name] = "is missing"
        elif name not in expected:
            faults[name] = "is unexpected"
        elif shapes[name] != expected[name]:
            faults[name] = f"has shape {shapes[name]}, expected {expected[name]}"
    return faults


def _check_fit(what: str, model: str, shapes: Mapping[str, Shape], expected: Mapping[str, Shape]) -> None:
    if faults := differences(shapes, expected):
        listed = [f"{name if name and name.isprintable() else repr(name)} {fault}" for name, fault in faults.items()]
        rest = len(listed) - MAX_FAULTS
        more = f"; and {rest} more" if rest > 0 else ""
        raise MisfitError(f"{what} do not fit {model}: {'; '.join(listed[:MAX_FAULTS])}{more}")


def from_tensors(
    model: Model,
    tensors: Mapping[str, Any],
    shapes: Mapping[str, Shape],
    img_size: tuple[int, int] | None = None,
    *,
    with_classifier: bool = True,
) -> dict[str, Any]:
    """Convert a state dict in any key format of the model's family to variables.

    Args:
        tensors: tensors, read one at a time and once each.
        img_size: (height, width) of the training images; None if unknown. Position embeddings of another image size
            are resampled.
        with_classifier: False to ignore the last layer of the weights, if they have one; then the variables have none.

    Raises:
        WeightsError: keys are missing, unexpected or of another shape, or values are neither float32 nor bfloat16, or
            not finite.
    """
    key_format = detect_format(model, shapes)
    last_layer = classifier_shapes(model, key_format)
    if with_classifier:
        _check_classifier(model, key_format, shapes)
        expected = model_of_weights(model, key_format, shapes, img_size)
        variables = load_state_dict(model.name, expected.shapes, key_format, tensors, shapes)
    else:
        expected = model_of_weights(model, key_format, {**shapes, **last_layer}, img_size)
        kept = {key: shape for key, shape in shapes.items() if key not in last_layer}
        params = functools.reduce(_without_layer, model.output_layers, expected.shapes["params"])
        wanted = {**expected.shapes, "params": params}
        variables = load_state_dict(model.name, wanted, key_format, tensors, kept)
    return variables if expected is model else resample_variables(model, variables, expected.input_spec.size)


def classifier_shapes(model: Model, key_format: KeyFormat) -> dict[str, Shape]:
    """Return the shapes of the tensors of the layers that depend on the classes, by key."""
    return expected_shapes(
        spec for spec in tensor_specs(model.shapes, key_format) if spec.paths[0][1:-1] in model.output_layers
    )


def _check_classifier(model: Model, key_format: KeyFormat, shapes: Mapping[str, Shape]) -> None:
    """Raise WeightsError if the last layer is all that the weights lack."""
    missing = expected_shapes(tensor_specs(model.shapes, key_format)).keys() - shapes.keys()
    if missing and missing == classifier_shapes(model, key_format).keys():
        raise WeightsError(
            f"the weights have no last layer ({', '.join(sorted(missing))}); a new one is initialized by "
            "config.init_head=new, or by load_pretrained with num_classes"
        )


def _without_layer(params: Mapping[str | int, Any], layer: ParamPath) -> dict[str | int, Any]:
    """Return nested parameters without those of one layer."""
    first, *rest = layer
    if rest:
        return {**params, first: _without_layer(params[first], tuple(rest))}
    return {name: value for name, value in params.items() if name != first}


def with_new_classifier(model: Model, variables: dict[str, Any], key: Key[Array, ""]) -> dict[str, Any]:
    """Return variables with the last layers of `model.init(key)`; those given have none, or others."""

    # Under jit, the other layers are not computed.
    @jax.jit
    def initialize(key: Key[Array, ""]) -> list[Any]:
        params = model.init(key)["params"]
        return [_get_layer(params, path) for path in model.output_layers]

    params = variables["params"]
    for path, layer in zip(model.output_layers, initialize(key), strict=True):
        params = _with_layer(params, path, layer)
    return {**variables, "params": params}


def _get_layer(params: Mapping[str | int, Any], path: ParamPath) -> Any:
    first, *rest = path
    return _get_layer(params[first], tuple(rest)) if rest else params[first]


def _with_layer(params: Mapping[str | int, Any], path: ParamPath, layer: Any) -> dict[str | int, Any]:
    first, *rest = path
    return {**params, first: _with_layer(params[first], tuple(rest), layer) if rest else layer}


def load_state_dict(
    name: str, variables: Any, key_format: KeyFormat, tensors: Mapping[str, Any], shapes: Mapping[str, Shape]
) -> dict[str, Any]:
    """Convert a state dict in a given key format to variables, as in `from_tensors`.

    Args:
        name: name of the model, for messages.
        variables: shapes of the variables.
    """
    specs = tensor_specs(variables, key_format)
    _check_fit("the weights", name, comparable_shapes(key_format, shapes), expected_shapes(specs))
    values = {}
    for spec in specs:
        for path, value in zip(spec.paths, spec.from_torch(_read(tensors, spec)), strict=True):
            if path[-1] == "running_var" and (num_bad := int((value < 0).sum())):
                raise WeightsError(f"{spec.keys[0]} has {count(num_bad, 'negative value')}; a variance is at least 0")
            # Always copy: JAX may alias the array, and the tensor belongs to the caller.
            values[path] = jax.device_put(np.array(value, np.float32, order="C"))
    return jax.tree_util.tree_map_with_path(lambda path, _: values[tuple(entry.key for entry in path)], variables)


def _read(tensors: Mapping[str, Any], spec: TensorSpec) -> np.ndarray:
    first, *tied = spec.keys
    values = _to_numpy(tensors[first], first)
    for key in tied:
        if not np.array_equal(_to_numpy(tensors[key], key), values):
            raise WeightsError(f"{key} differs from {first}; expected equal tensors, because the two are tied")
    return values.reshape(spec.shape)  # of a matrix that is stored as a 1x1 convolution


def _to_numpy(tensor: Any, key: str) -> np.ndarray:
    """Convert a PyTorch tensor, without importing PyTorch, or an array to NumPy; check that all values are finite."""
    kind = getattr(tensor.dtype, "name", str(tensor.dtype)).removeprefix("torch.")
    if kind not in DTYPES:
        raise WeightsError(f"{key} is {kind}; expected {' or '.join(DTYPES)}")
    try:
        if hasattr(tensor, "detach"):
            tensor = tensor.detach().cpu()
            # NumPy has no bfloat16; the conversion to float32 is exact.
            tensor = (tensor.float() if kind == "bfloat16" else tensor).numpy()
        values = np.asarray(tensor)
    except (NotImplementedError, RuntimeError, TypeError) as error:  # meta tensors, sparse layouts, ...
        raise WeightsError(
            f"{key} is on {tensor.device} with layout {tensor.layout}; expected a dense tensor with values"
        ) from error
    if num_bad := int((~np.isfinite(values)).sum()):
        raise WeightsError(f"{key} has {count(num_bad, 'non-finite value')}; the training run probably diverged")
    return values


def to_tensors(
    model: Model, variables: dict[str, Any], key_format: str | None = None, dtype: str = "float32"
) -> dict[str, np.ndarray]:
    """Convert the variables of a model to a state dict.

    Args:
        key_format: name of a format of the model's family; None for the first.
        dtype: dtype of all tensors but counters, "float32" or "bfloat16".

    Raises:
        WeightsError: the format cannot express the model, or the variables belong to another model.
    """
    found = get_format(model, key_format)
    state_dict = export_state_dict(model.name, model.shapes, found, variables, dtype)
    buffers = found.buffers(model.options, state_dict)
    return state_dict | {key: _round(value, dtype) for key, value in buffers.items()}


def export_state_dict(
    name: str, expected: Any, key_format: KeyFormat, variables: dict[str, Any], dtype: str = "float32"
) -> dict[str, np.ndarray]:
    """Convert variables to a state dict in a given key format, as in `to_tensors`.

    Args:
        name: name of the model, for messages.
        expected: shapes of the variables.
    """
    specs = tensor_specs(expected, key_format)
    if dtype not in DTYPES:
        raise WeightsError(f"dtype is {dtype!r}; expected {' or '.join(DTYPES)}")
    values = _by_name(variables)
    _check_fit("the variables", name, _shapes(values), _shapes(_by_name(expected)))
    state_dict = {}
    for spec in specs:
        leaves = [np.asarray(values[".".join(map(str, path))]) for path in spec.paths]
        tensor = _round(np.ascontiguousarray(spec.to_torch(leaves)), dtype)
        state_dict |= dict.fromkeys(spec.keys, tensor)
    return state_dict


def _round(array: np.ndarray, dtype: str) -> np.ndarray:
    """Convert an array to the dtype of exported tensors; counters remain integers."""
    if np.issubdtype(array.dtype, np.integer):
        return array
    return array.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def _by_name(variables: dict[str, Any]) -> dict[str, Any]:
    """Return the leaves by dotted path; list indices may be integers or, from a file, strings."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree.leaves_with_path(variables)
    }


def _shapes(leaves: Mapping[str, Any]) -> dict[str, Shape]:
    return {name: tuple(np.shape(leaf)) for name, leaf in leaves.items()}
