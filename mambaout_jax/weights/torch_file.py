"""Files of torch.save; PyTorch is imported only when one is read or written."""

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
from mambaout_jax.weights.errors import WeightsError
from mambaout_jax.weights.tensors import LazyTensors, TensorFile, without_prefixes

# In order of preference, as in timm: EMA weights first.
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")


def read_torch(path: str) -> TensorFile:
    """Read a state dict without running code in the file.

    Raises:
        WeightsError: the file is damaged or contains anything but a state dict.
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
        raise WeightsError(f"{path} contains a {type(weights).__name__}; a state dict is expected")
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise WeightsError(
                f"{where} contains a {type(value).__name__} under {name!r:.80}; a state dict of tensors is expected"
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
        WeightsError: PyTorch does not support the dtype of a tensor.
        MissingExtraError: PyTorch is not installed.
        OSError: the file cannot be written.
    """
    torch = _import_torch(path.name)
    state_dict = {name: _to_torch(torch, name, array) for name, array in tensors.items()}
    # Python's file objects raise OSError where PyTorch's own writer raises an internal error.
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
    # timm's training script stores its arguments in the file; a Namespace is plain data.
    allowed = torch.serialization.safe_globals([argparse.Namespace])
    try:
        with warnings.catch_warnings(), allowed, open(path, "rb") as file:
            warnings.simplefilter("ignore")  # about old formats, which are supported
            is_zip = file.read(2) == b"PK"
            file.seek(0)
            # torch.load treats paths with this extension differently.
            mapped = is_zip and not path.endswith(".safetensors") and _is_stored(path)
            return torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # damaged pickles raise errors of all types
        if isinstance(error, pickle.UnpicklingError):
            code = re.search(r"GLOBAL (\S+)", str(error))
            # A file cut short within a name, such as collections.OrderedDic, looks like code too.
            what = f"code ({code[1]:.100}), which was not run" if code else "objects other than tensors"
            raise WeightsError(
                f"{path} is damaged or contains {what}; save only model.state_dict(), or use safetensors"
            ) from error
        if is_zip and "TorchScript" in str(error):
            raise WeightsError(
                f"{path} is a TorchScript program, which was not run; save model.state_dict() instead"
            ) from error
        what = "zip" if is_zip else "pickle"
        raise WeightsError(
            f"{path} is a {what} file that is damaged or was not written by torch.save; download or save it again"
        ) from error


def _is_stored(path: str) -> bool:
    """Return whether a zip file is uncompressed, so that it can be mapped into memory."""
    with zipfile.ZipFile(path) as archive:
        return all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())


def _to_numpy(torch: ModuleType, path: str, name: str, tensor: Any) -> np.ndarray:
    try:
        if tensor.dtype == torch.bfloat16:
            return tensor.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.detach().numpy()
    except (RuntimeError, TypeError) as error:
        raise WeightsError(
            f"{path} has {name!r:.80} as {tensor.dtype} with layout {tensor.layout}, which NumPy does not support; a "
            "dense tensor of float32, float16 or bfloat16 is expected"
        ) from error


def _to_torch(torch: ModuleType, name: str, array: np.ndarray) -> Any:
    is_bfloat16 = array.dtype == ml_dtypes.bfloat16
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about read-only arrays, which are not written to
            tensor = torch.from_numpy(array.view(np.int16) if is_bfloat16 else array)
    except TypeError:
        raise WeightsError(
            f"{name} is {array.dtype}, which PyTorch does not support; float32 or bfloat16 is expected"
        ) from None
    return tensor.view(torch.bfloat16) if is_bfloat16 else tensor
