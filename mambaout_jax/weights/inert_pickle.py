"""A reader of pickles that builds tensors and plain containers, and replaces all other objects by placeholders.

No class or function that a file names is imported or called, except those of `_ALLOWED`, which are the ones of
`torch.load(..., weights_only=True)` that make up a state dict.
"""

import collections
import functools
import pickle
from types import ModuleType
from typing import Any

# Names in a file, with their attributes of PyTorch.
_ALLOWED = {
    "torch._utils._rebuild_tensor_v2": "_utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor": "_utils._rebuild_tensor",
    "torch._utils._rebuild_parameter": "_utils._rebuild_parameter",
    "torch.Size": "Size",
}
_DTYPES = ("float16", "float32", "float64", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "bool")


class Placeholder:
    """An object of the file that was not built. It accepts and ignores everything that a pickle does to an object."""

    kind = "object"

    def __new__(cls, *args: Any, **options: Any) -> "Placeholder":
        return super().__new__(cls)

    def __init__(self, *args: Any, **options: Any):
        pass

    def __call__(self, *args: Any, **options: Any) -> "Placeholder":
        return self

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Ignore an item."""

    def extend(self, values: Any) -> None:
        """Ignore items."""

    def add(self, value: Any) -> None:
        """Ignore an item."""

    def __hash__(self) -> int:
        return id(self)


def module(torch: ModuleType) -> ModuleType:
    """Return what `torch.load` takes as its pickle module."""

    class Unpickler(pickle.Unpickler):
        def load(self) -> Any:
            try:
                return super().load()
            except MemoryError as error:  # the values of tensors, which may need much memory, are read elsewhere
                raise pickle.UnpicklingError("a damaged size") from error

        def find_class(self, module_name: str, name: str) -> Any:
            full = f"{module_name}.{name}"
            if full == "collections.OrderedDict":
                return collections.OrderedDict
            if full in _ALLOWED:
                function = functools.reduce(getattr, _ALLOWED[full].split("."), torch)
                # A pickle can set attributes of what it gets, so it gets a new object.
                return function if isinstance(function, type) else functools.partial(function)
            if module_name == "torch" and name in _DTYPES:
                return getattr(torch, name)
            return type("Ignored", (Placeholder,), {"kind": full})

    inert = ModuleType("inert_pickle")
    inert.Unpickler = Unpickler
    inert.load = lambda file, **options: Unpickler(file, **options).load()
    return inert
