"""Tensors by name, read when they are asked for."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

_PREFIXES = ("module.", "_orig_mod.")  # of distributed and of compiled models, in either order


class TensorFile(NamedTuple):
    """Hold what a file of weights has.

    Args:
        tensors: bfloat16 is ml_dtypes.bfloat16; nothing is read before it is asked for, and nothing is kept.
        wrapper: the entry that they were taken from; None where the file holds nothing else.
    """

    tensors: Mapping[str, np.ndarray]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    wrapper: str | None = None


class LazyTensors(Mapping[str, np.ndarray]):
    """Map a name to what `read` gives for the name that the file has for it."""

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
        return name in self._names  # Mapping's own would read the tensor


def without_prefixes(names: list[str]) -> dict[str, str]:
    """Map each name, without the prefixes that wrapping a model gave to all of them, to the name as it is."""
    cleaned = names
    while prefix := next((p for p in _PREFIXES if cleaned and all(name.startswith(p) for name in cleaned)), None):
        cleaned = [name.removeprefix(prefix) for name in cleaned]
    return dict(zip(cleaned, names, strict=True))
