"""Key maps as data: how a PyTorch program names the parameters of a family, and how their axes are ordered there.

`mambaout_jax.weights` applies these rules in both directions.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np


class Transform(NamedTuple):
    """A change of axes or values from a PyTorch tensor to a parameter of ours, and its exact inverse.

    Both functions take a NumPy array of any values and return one; shapes are derived by calling them.
    """

    from_torch: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


IDENTITY = Transform(lambda x: x, lambda x: x)


@functools.cache
def permute(*axes: int) -> Transform:
    """Build the transform that orders the axes of a PyTorch tensor as `numpy.transpose(tensor, axes)`."""
    inverse = tuple(map(axes.index, range(len(axes))))
    return Transform(lambda x: x.transpose(axes), lambda x: x.transpose(inverse))


# By the parameter's own name and rank: a matrix is (out, in) in PyTorch and (in, out) here, a kernel (out, in, length)
# or (out, in, height, width) there and (length, in, out) or (height, width, in, out) here.
_LAYOUTS = {("weight", 2): permute(1, 0), ("weight", 3): permute(2, 1, 0), ("weight", 4): permute(2, 3, 1, 0)}


def default_transform(name: str, ndim: int) -> Transform:
    """Return the transform of a parameter whose rule names none: by its own name ("weight", "A_log") and rank."""
    return _LAYOUTS.get((name, ndim), IDENTITY)


@dataclass(frozen=True)
class Rule:
    """One line of a key map: a pattern of PyTorch keys and the pattern of our paths that corresponds to it.

    In both patterns `#` stands for a number and `*` for a name without dots; the two have the same of them in the same
    order.

    Args:
        key: pattern of the state dict's key; several patterns are tied tensors, which all equal the one parameter.
        path: pattern of the parameter's dotted path, without its collection ("params", "batch_stats"). In a rule with
            `join`, `@` stands for the position among the parameters in one tensor.
        transform: of each parameter; None for `default_transform`.
        join: how one tensor contains several parameters, in the order of `@`: "stack" along a new first axis or
            "concatenate" along the first axis.
    """

    key: str | tuple[str, ...]
    path: str
    transform: Transform | None = None
    join: Literal["stack", "concatenate"] | None = None

    def __post_init__(self):
        wildcards = [[char for char in pattern if char in "#*"] for pattern in (*self.keys, self.path)]
        if any(other != wildcards[0] for other in wildcards) or self.path.count("@") != (self.join is not None):
            raise ValueError(f"{self} does not pair its patterns; the same # and *, and one @ with join, are expected")

    @property
    def keys(self) -> tuple[str, ...]:
        """The patterns of all tied tensors, or the one pattern."""
        return (self.key,) if isinstance(self.key, str) else self.key


def same_names(*patterns: str) -> tuple[Rule, ...]:
    """Build the rules of parameters that have the same name on both sides."""
    return tuple(Rule(pattern, pattern) for pattern in patterns)


@dataclass(frozen=True, eq=False)
class KeyFormat:
    """The names that one program gives to the parameters of a family.

    Args:
        name: of the format, as `key_format=` takes it.
        rules: the first one that matches a parameter is applied.
        ignored: patterns of keys that are not parameters: counters, tables that are computed. They may be absent, are
            not read, and are not written. `**` stands for any dotted names.
        fixed: options of the family that the program has one value for.
    """

    name: str
    rules: tuple[Rule, ...]
    ignored: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
