"""The mapping between tensors of a state dict and variables of a model, by the rules of a key format."""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mambaout_jax.models import Family, dense_families, families
from mambaout_jax.models.api import ParamPath
from mambaout_jax.models.key_format import KeyFormat, Rule, Transform, default_transform
from mambaout_jax.models.registry import HEADS
from mambaout_jax.weights.errors import WeightsError

Shape = tuple[int, ...]

_WILDCARDS = {"**": ".+", "*": r"([A-Za-z_]\w*)", "#": "([0-9]+)", "@": "(?P<part>[0-9]+|@)"}


class TensorSpec(NamedTuple):
    """One tensor of a state dict and its variables.

    Args:
        keys: keys in the state dict; several for tied tensors.
        shape: shape in the state dict.
        paths: paths of the variables, in their order within the tensor.
        rule: the rule that maps them.
        transform: transform of each variable.
    """

    keys: tuple[str, ...]
    shape: Shape
    paths: tuple[ParamPath, ...]
    rule: Rule
    transform: Transform

    def from_torch(self, tensor: np.ndarray) -> Sequence[np.ndarray]:
        """Convert the tensor to the values of the variables."""
        match self.rule.join:
            case "stack":
                parts = list(tensor)
            case "concatenate":
                parts = np.split(tensor, len(self.paths))
            case _:
                parts = [tensor]
        return [self.transform.from_torch(part) for part in parts]

    def to_torch(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """Convert the values of the variables to the tensor."""
        parts = [self.transform.to_torch(value) for value in values]
        match self.rule.join:
            case "stack":
                return np.stack(parts)
            case "concatenate":
                return np.concatenate(parts)
            case _:
                return parts[0]


def to_torch_key(key_format: KeyFormat, path: str) -> str | None:
    """Return the state-dict key of our dotted path (the first one of tied tensors), or None if no rule matches.

    Args:
        path: path without its collection.
    """
    found = _find_rule(key_format, path)
    return None if found is None else found[1][0]


@functools.lru_cache(maxsize=2**17)
def from_torch_key(key_format: KeyFormat, key: str) -> str | None:
    """Return our dotted path of a state-dict key, or None if no rule matches.

    The path of joined variables contains `@` in place of their index.
    """
    for rule in key_format.rules:
        for pattern in rule.keys:
            if match := _compile(pattern).fullmatch(key):
                return _fill(rule.path, match)
    return None


def is_ignored(key_format: KeyFormat, key: str) -> bool:
    """Return whether the key format ignores a key."""
    return _matches(key_format.ignored, key)


def _matches(patterns: Iterable[str], key: str) -> bool:
    return any(_compile(pattern).fullmatch(key) for pattern in patterns)


def is_known(key: str) -> bool:
    """Return whether a key belongs to any key format; keys without a dot, which many models share, do not count."""
    return "." in key and any(
        from_torch_key(key_format, key) is not None or is_ignored(key_format, key)
        for family in families()
        for key_format in family.key_formats
    )


def has_head(keys: Iterable[str]) -> bool:
    """Return whether a state dict is that of a model with a head, whose backbone has the names of a wrapped model."""
    patterns = [pattern for head in HEADS for rule in head.rules for pattern in rule.keys]
    return any(_matches(patterns, key) for key in keys)


def matching_formats(keys: Iterable[str], prefer: Family | None = None) -> list[tuple[Family, KeyFormat]]:
    """Return the key formats that match at least half of the keys of a state dict, best match first.

    Args:
        prefer: family whose formats come first among equal matches.

    Raises:
        WeightsError: no format matches.
    """
    # Keys without a dot do not count: many models share names such as "pos_embed".
    keys = list(keys)
    candidates = dense_families() if has_head(keys) else families()
    formats = [(family, key_format) for family in candidates for key_format in family.key_formats]
    known = {
        (family, key_format.name): sum(
            "." in key and (from_torch_key(key_format, key) is not None or is_ignored(key_format, key)) for key in keys
        )
        for family, key_format in formats
    }
    found = [pair for pair in formats if 2 * known[pair[0], pair[1].name] >= max(len(keys), 1)]
    if not found:
        some = ", ".join(sorted(keys)[:3]) or "none"
        names = ", ".join(f"{family.module.__name__} in key format {key_format.name}" for family, key_format in formats)
        raise WeightsError(f"the keys ({some}, ...) match no known model; supported are {names}")
    return sorted(found, key=lambda pair: (-known[pair[0], pair[1].name], pair[0] is not prefer))


def tensor_specs(variables: Any, key_format: KeyFormat) -> list[TensorSpec]:
    """Return the tensors in the state dict of a model, in the order of its variables.

    Args:
        variables: arrays or `jax.ShapeDtypeStruct`s, {"params": ..., "batch_stats": ...}.

    Raises:
        WeightsError: a variable has no rule, or two variables have the same key.
    """
    groups: dict[tuple[str, ...], tuple[Rule, dict[int, tuple[ParamPath, Shape]]]] = {}
    for key_path, leaf in jax.tree.leaves_with_path(variables):
        path = tuple(entry.key for entry in key_path)
        # Without the first component, the collection: state dicts do not distinguish parameters and buffers.
        name = ".".join(map(str, path[1:]))
        found = _find_rule(key_format, name)
        if found is None:
            raise WeightsError(f"key format {key_format.name!r} has no rule for {name}; add one to its rules")
        rule, keys, part = found
        _, parts = groups.setdefault(keys, (rule, {}))
        if part in parts:
            raise WeightsError(
                f"key format {key_format.name!r} maps two variables to {keys[0]}, one of them {name}; add a rule that "
                "separates them"
            )
        parts[part] = path, tuple(leaf.shape)
    return [_tensor_spec(keys, rule, [parts[part] for part in sorted(parts)]) for keys, (rule, parts) in groups.items()]


def _tensor_spec(keys: tuple[str, ...], rule: Rule, parts: list[tuple[ParamPath, Shape]]) -> TensorSpec:
    paths, shapes = zip(*parts, strict=True)
    transform = rule.transform or default_transform(paths[0][-1], len(shapes[0]))
    spec = TensorSpec(keys, (), paths, rule, transform)
    if len(set(shapes)) > 1:
        raise WeightsError(f"the variables joined in {keys[0]} have shapes {shapes}; expected equal shapes")
    # A broadcast scalar has the shape without the memory.
    (first, *_), value = shapes, np.zeros((), np.float32)
    inner = transform.to_torch(np.broadcast_to(value, first)).shape
    match rule.join:
        case "stack":
            shape = (len(paths), *inner)
        case "concatenate":
            shape = (len(paths) * inner[0], *inner[1:])
        case _:
            shape = inner
    return spec._replace(shape=shape)


def expected_shapes(specs: Iterable[TensorSpec]) -> dict[str, Shape]:
    """Return the shapes of a state dict, by key."""
    return {key: spec.shape for spec in specs for key in spec.keys}


def comparable_shapes(key_format: KeyFormat, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return shapes to compare with the expected ones: without ignored keys, and 1x1 convolutions as matrices."""
    return {
        key: shape[:2] if shape[2:] == (1, 1) and _matches(key_format.linear, key) else shape
        for key, shape in shapes.items()
        if not is_ignored(key_format, key)
    }


def _find_rule(key_format: KeyFormat, path: str) -> tuple[Rule, tuple[str, ...], int] | None:
    """Return the first rule that matches a path, its keys, and the index of the variable within the joined tensor."""
    for rule in key_format.rules:
        if match := _compile(rule.path).fullmatch(path):
            part = match.groupdict().get("part", "0")
            return rule, tuple(_fill(key, match) for key in rule.keys), -1 if part == "@" else int(part)
    return None


@functools.cache
def _compile(pattern: str) -> re.Pattern[str]:
    tokens = re.split(r"(\*\*|[*#@])", pattern)
    return re.compile("".join(_WILDCARDS.get(token, re.escape(token)) for token in tokens))


def _fill(pattern: str, match: re.Match[str]) -> str:
    """Replace the wildcards of a pattern, in order, by those of a match."""
    part = match.re.groupindex.get("part")
    values = iter([value for index, value in enumerate(match.groups(), 1) if index != part])
    return re.sub("[*#]", lambda _: next(values), pattern)
