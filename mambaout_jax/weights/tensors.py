"""Lazily read tensors, by name."""

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mambaout_jax.weights.errors import WeightsError
from mambaout_jax.weights.key_map import has_head, is_known

# Of DistributedDataParallel and AveragedModel, of torch.compile, of Lightning, and of programs with several networks.
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.")


class TensorFile(NamedTuple):
    """The contents of a weights file.

    Args:
        tensors: tensors, read on each access and not cached; bfloat16 is ml_dtypes.bfloat16.
        wrapper: entry of the file that contains them; None if they are entries of the file itself.
        ignored: descriptions of everything else in the file.
    """

    tensors: Mapping[str, np.ndarray]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    wrapper: str | None = None
    ignored: tuple[str, ...] = ()


class LazyTensors(Mapping[str, np.ndarray]):
    """A mapping whose values are `read(names[name])`."""

    def __init__(self, names: Mapping[str, str], read: Callable[[str], np.ndarray]):
        self._names = names
        self._read = read

    def __getitem__(self, name: str) -> np.ndarray:
        return self._read(self._names[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names  # the default implementation would read the tensor


def without_prefixes(names: Iterable[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Remove the prefixes of wrapped models, unless the names with prefix belong to a known model.

    A prefix is removed if most names have it, or if it is the only one that a third have and with which most belong to
    a known model: a file may have moving averages of all tensors too. The other names are not part of the model.

    Returns:
        Full names by name without prefixes, and the full names that lack the prefix.
    """
    stripped, outside = {name: name for name in names}, []
    while not has_head(stripped) and (prefix := _common_prefix(stripped)):
        outside += [full for name, full in stripped.items() if not name.startswith(prefix)]
        stripped = {name.removeprefix(prefix): full for name, full in stripped.items() if name.startswith(prefix)}
    return stripped, tuple(outside)


def _common_prefix(names: Collection[str]) -> str | None:
    if 2 * sum(map(is_known, names)) > len(names):
        return None
    inner = {prefix: [name.removeprefix(prefix) for name in names if name.startswith(prefix)] for prefix in _PREFIXES}
    if common := [prefix for prefix, own in inner.items() if 2 * len(own) > len(names)]:
        return common[0]
    frequent = [prefix for prefix, own in inner.items() if 3 * len(own) > len(names)]
    of_models = [prefix for prefix in frequent if 2 * sum(map(is_known, inner[prefix])) > len(inner[prefix])]
    return of_models[0] if len(of_models) == 1 else None  # of two networks, neither is chosen


def open_state_dict(state_dict: Mapping[str, Any]) -> tuple[LazyTensors, dict[str, tuple[int, ...]]]:
    """Return the tensors and shapes of a state dict, without the prefixes of wrapped models.

    Raises:
        WeightsError: a key is not a string or a value is not a tensor.
    """
    for key, value in state_dict.items():
        if not isinstance(key, str) or not hasattr(value, "shape"):
            kind = type(value).__name__
            raise WeightsError(f"the state dict has a {kind} under {key!r}; expected tensors by name")
    names, outside = without_prefixes(state_dict)
    warn_of_ignored("the state dict", outside)
    shapes = {name: tuple(state_dict[key].shape) for name, key in names.items()}
    return LazyTensors(names, state_dict.__getitem__), shapes


def warn_of_ignored(origin: str, ignored: Sequence[str]) -> None:
    """Warn that parts of a source of weights were not used."""
    if ignored:
        warnings.warn(f"{origin}: ignored {', '.join(ignored)}", stacklevel=3)
