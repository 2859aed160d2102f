"""Key formats: the parameter names and tensor layouts of a family in a PyTorch codebase, as data.

`mambaout_jax.weights` applies these rules in both directions.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np


class Transform(NamedTuple):
    """A conversion of axes or values from a PyTorch tensor to our parameter, and its exact inverse.

    Both functions map a NumPy array to a NumPy array, for any values; shapes are inferred by calling them.
    """

    from_torch: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


IDENTITY = Transform(lambda x: x, lambda x: x)


@functools.cache
def permute(*axes: int) -> Transform:
    """Build the transform `numpy.transpose(tensor, axes)`."""
    inverse = tuple(map(axes.index, range(len(axes))))
    return Transform(lambda x: x.transpose(axes), lambda x: x.transpose(inverse))


# By the last component of the name and the rank. Matrices are (out, in) in PyTorch and (in, out) here; kernels are
# (out, in, length) or (out, in, height, width) in PyTorch and (length, in, out) or (height, width, in, out) here.
_LAYOUTS = {("weight", 2): permute(1, 0), ("weight", 3): permute(2, 1, 0), ("weight", 4): permute(2, 3, 1, 0)}


def default_transform(name: str, ndim: int) -> Transform:
    """Return the transform for rules without one, by the parameter's last name ("weight", "A_log") and rank."""
    return _LAYOUTS.get((name, ndim), IDENTITY)


@dataclass(frozen=True)
class Rule:
    """A pattern of PyTorch keys and the corresponding pattern of our parameter paths.

    In both patterns, `#` matches a number and `*` a name without dots; both contain the same wildcards in the same
    order.

    Args:
        key: pattern of the state-dict key. Several patterns are tied tensors, which all equal the one parameter.
        path: pattern of the parameter's dotted path, without its collection ("params", "batch_stats"). In a rule with
            `join`, `@` is the index of the parameter within the tensor.
        transform: transform of each parameter; None for `default_transform`.
        join: how several parameters form one tensor, in the order of `@`: "stack" along a new first axis or
            "concatenate" along the first axis.
    """

    key: str | tuple[str, ...]
    path: str
    transform: Transform | None = None
    join: Literal["stack", "concatenate"] | None = None

    def __post_init__(self):
        wildcards = [[char for char in pattern if char in "#*"] for pattern in (*self.keys, self.path)]
        if any(other != wildcards[0] for other in wildcards) or self.path.count("@") != (self.join is not None):
            raise ValueError(f"the patterns of {self} differ; expected the same # and *, and one @ with join")

    @functools.cached_property
    def keys(self) -> tuple[str, ...]:
        """Return the patterns of all tied tensors, or the one pattern."""
        return (self.key,) if isinstance(self.key, str) else self.key


def same_names(*patterns: str) -> tuple[Rule, ...]:
    """Build rules for parameters with the same name on both sides."""
    return tuple(Rule(pattern, pattern) for pattern in patterns)


def batch_counters(options: Mapping[str, Any], keys: Iterable[str]) -> dict[str, np.ndarray]:
    """Return the counters of batches of all batch norms in a state dict, at zero, for `KeyFormat.buffers`."""
    names = [key.removesuffix("running_var") for key in keys if key.endswith(".running_var")]
    return {f"{name}num_batches_tracked": np.zeros((), np.int64) for name in names}


@dataclass(frozen=True, eq=False)
class KeyFormat:
    """The parameter names of a family in one PyTorch codebase.

    Args:
        name: name of the format, as in `key_format=`.
        rules: rules; the first that matches a parameter applies.
        ignored: patterns of keys that are not parameters, such as counters and precomputed tables. They may be absent,
            and are not read. `**` matches any dotted name.
        buffers: function of (options of the model, keys of its parameters) that computes those of the ignored tensors
            that PyTorch's `load_state_dict(strict=True)` requires, by key. They are written.
        linear: patterns of keys of matrices (out, in) that may be stored as 1x1 convolutions (out, in, 1, 1). They are
            written as matrices.
        fixed: options of the family with only one value in this codebase.
        remark: function of the written tensors, by key, that returns a sentence on loading them in this codebase; None
            if there is nothing to know.
    """

    name: str
    rules: tuple[Rule, ...]
    ignored: tuple[str, ...] = ()
    buffers: Callable[[Mapping[str, Any], Iterable[str]], Mapping[str, np.ndarray]] = lambda options, keys: {}
    linear: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    remark: Callable[[Mapping[str, np.ndarray]], str | None] = lambda tensors: None
