"""Lazily read tensors, by name."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from mambaout_jax.weights.errors import WeightsError

_PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile, in either order


class TensorFile(NamedTuple):
    """The contents of a weights file.

    Args:
        tensors: tensors, read on each access and not cached; bfloat16 is ml_dtypes.bfloat16.
        wrapper: entry of the file that contains them; None if the file contains only the tensors.
    """

    tensors: Mapping[str, np.ndarray]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    wrapper: str | None = None


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


def without_prefixes(names: list[str]) -> dict[str, str]:
    """Map names without the prefixes of wrapped models to full names; a prefix is removed if all names have it."""
    cleaned = names
    while prefix := next((p for p in _PREFIXES if cleaned and all(name.startswith(p) for name in cleaned)), None):
        cleaned = [name.removeprefix(prefix) for name in cleaned]
    return dict(zip(cleaned, names, strict=True))


def open_state_dict(state_dict: Mapping[str, Any]) -> tuple[LazyTensors, dict[str, tuple[int, ...]]]:
    """Return the tensors and shapes of a state dict, without the prefixes of wrapped models.

    Raises:
        WeightsError: a key is not a string or a value is not a tensor.
    """
    for key, value in state_dict.items():
        if not isinstance(key, str) or not hasattr(value, "shape"):
            kind = type(value).__name__
            raise WeightsError(f"the state dict has a {kind} under {key!r}; tensors by name are expected")
    names = without_prefixes(list(state_dict))
    shapes = {name: tuple(state_dict[key].shape) for name, key in names.items()}
    return LazyTensors(names, state_dict.__getitem__), shapes
