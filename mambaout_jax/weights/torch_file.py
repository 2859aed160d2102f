"""Files of torch.save; PyTorch is imported only to read or write one."""

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np

from mambaout_jax.extras import importing
from mambaout_jax.weights.errors import ConvertError
from mambaout_jax.weights.tensors import LazyTensors, TensorFile, without_prefixes

# In timm's order of preference: averaged weights first.
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")


def read_torch(path: str) -> TensorFile:
    """Read a state dict without running code in the file.

    Raises:
        ConvertError: the file is damaged or contains anything but tensors by name.
        MissingExtraError: PyTorch is not installed.
    """
    torch = _import_torch(path)
    loaded = _load(torch, path)
    wrapper = None
    if isinstance(loaded, Mapping):
        wrapper = next((key for key in WRAPPERS if isinstance(loaded.get(key), Mapping) and loaded[key]), None)
    weights = loaded if wrapper is None else loaded[wrapper]
    where = path if wrapper is None else f"{path}, entry {wrapper!r},"
    if not isinstance(weights, Mapping):
        raise ConvertError(f"{path} contains a {type(weights).__name__}; a state dict, tensors by name, is expected")
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ConvertError(
                f"{where} contains a {type(value).__name__} under {name!r:.80}; a state dict, tensors by name, is "
                "expected"
            )
    names = without_prefixes(list(weights))
    return TensorFile(
        LazyTensors(names, lambda name: _to_numpy(torch, path, name, weights[name])),
        {name: tuple(weights[key].shape) for name, key in names.items()},
        {name: str(weights[key].dtype).removeprefix("torch.") for name, key in names.items()},
        wrapper,
    )


def write_torch(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a state dict.

    Raises:
        ConvertError: PyTorch has no such dtype.
        MissingExtraError: PyTorch is not installed.
        OSError: the file system refuses.
    """
    torch = _import_torch(path.name)
    state_dict = {name: _to_torch(torch, name, array) for name, array in tensors.items()}
    # Python's own file raises OSError where PyTorch's writer raises an internal error.
    with path.open("wb") as file:
        try:
            torch.save(state_dict, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def _import_torch(path: str) -> ModuleType:
    with importing("torch", f"{path} requires PyTorch"):
        import torch
    return torch


def _load(torch: ModuleType, path: str) -> Any:
    is_zip = False
    # timm's training writes its arguments into the file; a Namespace is plain data.
    harmless = torch.serialization.safe_globals([argparse.Namespace])
    try:
        with warnings.catch_warnings(), harmless, open(path, "rb") as file:
            warnings.simplefilter("ignore")  # about old formats, which are read anyway
            is_zip = file.read(2) == b"PK"
            file.seek(0)
            # torch.load goes by this ending of a path.
            mapped = is_zip and not path.endswith(".safetensors") and _is_stored(path)
            return torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # damaged pickles raise errors of all types
        if isinstance(error, pickle.UnpicklingError):
            code = re.search(r"GLOBAL (\S+)", str(error))
            what = f"contains code ({code[1]:.100})" if code else "is damaged, or contains something"
            raise ConvertError(
                f"{path} {what} besides tensors, which was not run; save model.state_dict() alone where it was "
                "written, or safetensors"
            ) from error
        if is_zip and "TorchScript" in str(error):
            raise ConvertError(
                f"{path} is a TorchScript program, which was not run; save model.state_dict() instead"
            ) from error
        what = "zip" if is_zip else "pickle"
        raise ConvertError(
            f"{path} is a {what} that torch.save did not write, or a damaged one; fetch or save it again"
        ) from error


def _is_stored(path: str) -> bool:
    """Return whether a zip can be mapped into memory: not one that was compressed."""
    with zipfile.ZipFile(path) as archive:
        return all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())


def _to_numpy(torch: ModuleType, path: str, name: str, tensor: Any) -> np.ndarray:
    try:
        if tensor.dtype == torch.bfloat16:
            return tensor.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.detach().numpy()
    except (RuntimeError, TypeError) as error:
        raise ConvertError(
            f"{path} has {name!r:.80} as {tensor.dtype} in a {tensor.layout} layout, which NumPy lacks; a plain "
            "tensor is expected"
        ) from error


def _to_torch(torch: ModuleType, name: str, array: np.ndarray) -> Any:
    is_bfloat16 = array.dtype == ml_dtypes.bfloat16
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about read-only arrays, which are not written to
            tensor = torch.from_numpy(array.view(np.int16) if is_bfloat16 else array)
    except TypeError:
        raise ConvertError(
            f"{name} is {array.dtype}, which PyTorch cannot take; float32 or bfloat16 is expected"
        ) from None
    return tensor.view(torch.bfloat16) if is_bfloat16 else tensor
