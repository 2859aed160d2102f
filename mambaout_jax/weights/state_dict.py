"""PyTorch state dicts to variables and back, by the tables of `dialects`."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np

from mambaout_jax.models import VARIANTS, MambaBlock, Model
from mambaout_jax.weights.errors import ConvertError
from mambaout_jax.weights.key_maps import KEY_TABLES, LAYOUTS, KeyTable

Shape = tuple[int, ...]

# Widened to float32 without loss. float16 is not: what was trained overflows or vanishes in it.
DTYPES = ("float32", "bfloat16")


class Slot(NamedTuple):
    """Tell what a dialect calls one of our leaves.

    Args:
        key: in the state dict.
        shape: in the state dict.
        axes: of the state dict's tensor, in our order.
    """

    key: str
    shape: Shape
    axes: tuple[int, ...]


def find_table(keys: Iterable[str]) -> KeyTable:
    """Recognise the dialect of a state dict: the one that knows most of its keys.

    Raises:
        ConvertError: none knows as many as half of them.
    """
    keys = list(keys)
    table = max(KEY_TABLES, key=lambda table: count_known(table, keys))
    if 2 * count_known(table, keys) < max(len(keys), 1):
        some = ", ".join(sorted(keys)[:3]) or "none at all"
        known = ", ".join(f"{table.family.__name__} as {table.dialect} names it" for table in KEY_TABLES)
        raise ConvertError(f"the keys ({some}, ...) are those of another model; known are {known}")
    return table


def count_known(table: KeyTable, keys: Iterable[str]) -> int:
    """Count the keys that a table knows, but for parameters of the model itself, which any model may have."""
    return sum("." in key and to_ours(table, key) is not None for key in keys)


def to_ours(table: KeyTable, key: str) -> str | None:
    """Give our dotted name for a dialect's key; None if the table does not know it."""
    return _rename(key, [(theirs, ours) for ours, theirs in table.layers.items()])


def to_theirs(table: KeyTable, name: str) -> str | None:
    """Give a dialect's key for our dotted name; None if the table does not know it."""
    return _rename(name, list(table.layers.items()))


def _rename(name: str, rows: list[tuple[str, str]]) -> str | None:
    layer, _, leaf = name.rpartition(".")
    for source, target in rows:
        if match := re.fullmatch(re.escape(source).replace(r"\*", r"(\d+)"), layer):
            renamed = target.replace("*", "{}").format(*match.groups())
            return f"{renamed}.{leaf}" if renamed else leaf
    return None


def get_table(model: Model, dialect: str) -> KeyTable:
    """Find the table of a model's family, and check that the dialect can express the model.

    Raises:
        ConvertError: there is none, or the dialect has another value for an option.
    """
    tables = {table.dialect: table for table in KEY_TABLES if table.family is VARIANTS[model.name].family}
    if dialect not in tables:
        raise ConvertError(f"dialect {dialect!r} does not name {model.name}; known are {', '.join(tables)}")
    table = tables[dialect]
    if faults := [
        f"{key} is {model.options[key]!r}" for key, value in table.fixed.items() if model.options[key] != value
    ]:
        others = ", ".join(f"{key} {value!r}" for key, value in table.fixed.items())
        raise ConvertError(
            f"dialect {dialect!r} cannot express {model.name}: {'; '.join(faults)}; it has {others} alone"
        )
    return table


def slots(model: Model | MambaBlock, table: KeyTable) -> dict[tuple[Any, ...], Slot]:
    """Tell for each leaf of a model's variables what a dialect calls it and how it lies there."""
    leaves, _ = jax.tree.flatten_with_path(jax.eval_shape(model.init, jax.random.key(0)))
    found = {}
    for key_path, leaf in leaves:
        path = tuple(entry.key for entry in key_path)
        axes = LAYOUTS.get((path[-1], leaf.ndim), tuple(range(leaf.ndim)))
        shape = tuple(leaf.shape[axes.index(axis)] for axis in range(leaf.ndim))
        # The first entry of a path is the collection that the leaf lies in, which PyTorch does not tell apart.
        name = ".".join(map(str, path[1:]))
        if (key := to_theirs(table, name)) is None:
            raise ConvertError(f"dialect {table.dialect!r} has no name for {name}; its table needs a row")
        found[path] = Slot(key, shape, axes)
    return found


def expected_shapes(model: Model, table: KeyTable) -> dict[str, Shape]:
    """Give the shapes that a dialect's state dict of a model has."""
    return {slot.key: slot.shape for slot in slots(model, table).values()}


def differences(shapes: Mapping[str, Shape], expected: Mapping[str, Shape]) -> dict[str, str]:
    """Tell by name what is missing, left over or of another shape."""
    faults = {}
    for name in sorted(shapes.keys() | expected.keys()):
        if name not in shapes:
            faults[name] = "is missing"
        elif name not in expected:
            faults[name] = "is left over"
        elif shapes[name] != expected[name]:
            faults[name] = f"has shape {shapes[name]} where {expected[name]} is expected"
    return faults


def _check_fit(
    what: str, model: Model | MambaBlock, shapes: Mapping[str, Shape], expected: Mapping[str, Shape]
) -> None:
    if faults := differences(shapes, expected):
        shown = {name: name if name and name.isprintable() else repr(name) for name in faults}
        told = "; ".join(f"{shown[name]} {fault}" for name, fault in faults.items())
        raise ConvertError(f"{what} do not fit {model.name}: {told}")


def from_tensors(model: Model, tensors: Mapping[str, Any], shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Turn a state dict of either dialect into a model's variables.

    Args:
        tensors: read one at a time, once each.

    Raises:
        ConvertError: keys are missing, left over or of another shape, or values are neither float32 nor bfloat16, or
            not finite.
    """
    table = find_table(shapes)
    if table.family is not (ours := VARIANTS[model.name].family):
        raise ConvertError(f"the weights are those of a {table.family.__name__}; a {ours.__name__} is expected")
    return fill(model, get_table(model, table.dialect), tensors, shapes)


def fill(
    model: Model | MambaBlock, table: KeyTable, tensors: Mapping[str, Any], shapes: Mapping[str, Shape]
) -> dict[str, Any]:
    """Turn a state dict in the dialect of a table into variables, as `from_tensors` does."""
    places = slots(model, table)
    _check_fit("the weights", model, shapes, {slot.key: slot.shape for slot in places.values()})
    structure = jax.tree.structure(jax.eval_shape(model.init, jax.random.key(0)))
    return jax.tree.unflatten(structure, [_take(tensors[slot.key], slot) for slot in places.values()])


def _take(tensor: Any, slot: Slot) -> jax.Array:
    kind = getattr(tensor.dtype, "name", str(tensor.dtype)).removeprefix("torch.")
    if kind not in DTYPES:
        raise ConvertError(
            f"{slot.key} is {kind}; {' or '.join(DTYPES)} is expected: give the weights as they were trained"
        )
    try:
        values = _to_numpy(tensor)
    except (NotImplementedError, RuntimeError, TypeError) as error:  # meta, sparse and their like
        raise ConvertError(
            f"{slot.key} lies on {tensor.device} in a {tensor.layout} layout; a plain tensor with values is expected"
        ) from error
    if num_bad := int((~np.isfinite(values)).sum()):
        raise ConvertError(f"{slot.key} holds {num_bad} values that are not finite; it comes from a run that diverged")
    # A copy in any case: JAX may keep memory that it is given, and what was read is the caller's.
    return jax.device_put(np.array(values.transpose(slot.axes), np.float32, order="C"))


def _to_numpy(tensor: Any) -> np.ndarray:
    """Give a tensor of PyTorch, without importing it, or an array."""
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu()
        # NumPy has no bfloat16 of its own; widening loses nothing.
        tensor = (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
    return np.asarray(tensor)


def to_tensors(
    model: Model, variables: dict[str, Any], dialect: str = "timm", dtype: str = "float32"
) -> dict[str, np.ndarray]:
    """Turn a model's variables into a state dict.

    Args:
        dtype: "float32" or "bfloat16", of every tensor.

    Raises:
        ConvertError: the dialect cannot express the model, or the variables are those of another one.
    """
    return pour(model, get_table(model, dialect), variables, dtype)


def pour(
    model: Model | MambaBlock, table: KeyTable, variables: dict[str, Any], dtype: str = "float32"
) -> dict[str, np.ndarray]:
    """Turn variables into a state dict in the dialect of a table, as `to_tensors` does."""
    places = slots(model, table)
    if dtype not in DTYPES:
        raise ConvertError(f"dtype is {dtype!r}; {' or '.join(DTYPES)} is expected")
    values = _by_name(variables)
    expected = _by_name(jax.eval_shape(model.init, jax.random.key(0)))
    _check_fit(
        "the variables", model, *({name: np.shape(leaf) for name, leaf in of.items()} for of in (values, expected))
    )
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    return {
        slot.key: np.ascontiguousarray(
            np.asarray(values[".".join(map(str, path))]).transpose(np.argsort(slot.axes))
        ).astype(kind)
        for path, slot in places.items()
    }


def _by_name(variables: dict[str, Any]) -> dict[str, Any]:
    """Give leaves by their dotted paths, in which the place in a list may be a number or, from a file, its digits."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree.leaves_with_path(variables)
    }
