"""Files of torch.save; PyTorch is imported only when one is read or written."""

import pickle
import re
import tarfile
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np

from mambaout_jax.extras import importing
from mambaout_jax.machine import raise_machine_fault
from mambaout_jax.weights import inert_pickle
from mambaout_jax.weights.errors import WeightsError
from mambaout_jax.weights.tensors import LazyTensors, TensorFile, without_prefixes

# In order of preference, as in timm: EMA weights first. Then the names of other programs.
WRAPPERS = (
    "state_dict_ema", "model_ema", "ema_state_dict", "state_dict", "model", "model_state_dict", "model_state", "module",
    "net", "params",
)  # fmt: skip


def read_torch(path: str, entry: str | None = None) -> TensorFile:
    """Read a state dict without running code in the file.

    Objects of classes other than tensors and containers are not built; they are listed as ignored.

    Args:
        entry: entry of the file that contains the state dict; None for the first of `WRAPPERS`, else the file itself.

    Raises:
        WeightsError: the file is damaged or contains no state dict, or not in this entry.
        MissingExtraError: PyTorch is not installed.
    """
    torch = import_torch(path)
    loaded = _load(torch, path)
    if not isinstance(loaded, Mapping):
        raise WeightsError(f"{path} contains a {_kind(loaded)}; expected a state dict")
    if entry is not None and not _tensors(torch, loaded.get(entry)):
        others = ", ".join(f"{key!r:.80}" for key, value in loaded.items() if _tensors(torch, value)) or "none"
        raise WeightsError(f"{path} has no state dict in an entry {entry!r}; entries with a state dict: {others}")
    wrapper = entry or next((key for key in WRAPPERS if _tensors(torch, loaded.get(key))), None)
    weights = loaded if wrapper is None else loaded[wrapper]
    tensors = _tensors(torch, weights)
    if loaded and not tensors:
        content = ", ".join(f"{key!r:.80} ({_kind(value)})" for key, value in loaded.items())
        raise WeightsError(f"{path} contains {content}; expected a state dict of tensors")
    others = {} if wrapper is None else {key: value for key, value in loaded.items() if key != wrapper}
    others |= {key: value for key, value in weights.items() if key not in tensors}
    names, outside = without_prefixes(tensors)
    return TensorFile(
        LazyTensors(names, lambda name: _to_numpy(torch, path, name, tensors[name])),
        {name: tuple(tensors[key].shape) for name, key in names.items()},
        {name: str(tensors[key].dtype).removeprefix("torch.") for name, key in names.items()},
        wrapper,
        (*outside, *(f"{key} ({_kind(value)})" for key, value in others.items())),
    )


def _tensors(torch: ModuleType, value: Any) -> dict[str, Any]:
    """Return the tensors of a state dict, by name; none for any other object."""
    if not isinstance(value, Mapping):
        return {}
    return {key: item for key, item in value.items() if isinstance(key, str) and isinstance(item, torch.Tensor)}


def _kind(value: Any) -> str:
    return getattr(value, "kind", None) or type(value).__name__


def write_torch(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a state dict.

    Raises:
        WeightsError: PyTorch does not support the dtype of a tensor.
        MissingExtraError: PyTorch is not installed.
        OSError: the file cannot be written.
    """
    torch = import_torch(path.name)
    state_dict = {name: _to_torch(torch, name, array) for name, array in tensors.items()}
    # Python's file objects raise OSError where PyTorch's own writer raises an internal error.
    with path.open("wb") as file:
        try:
            torch.save(state_dict, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def import_torch(path: str) -> ModuleType:
    """Import PyTorch, which a file requires.

    Raises:
        MissingExtraError: it is not installed.
    """
    with importing("torch", f"{path} requires PyTorch"):
        import torch
    return torch


def _load(torch: ModuleType, path: str) -> Any:
    is_zip = False
    try:
        with warnings.catch_warnings(), open(path, "rb") as file:
            warnings.simplefilter("ignore")  # about old formats, which are supported
            is_zip = file.read(2) == b"PK"
            file.seek(0)
            # torch.load treats paths with this extension differently.
            mapped = is_zip and not path.endswith(".safetensors") and _is_stored(path)
            try:
                return torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
            except pickle.UnpicklingError:
                if tarfile.is_tarfile(path):  # a format of before 2017, which would be unpacked
                    raise
            file.seek(0)
            # PyTorch's own reader of trusted types stops at the first other type, and at newer pickle protocols.
            return torch.load(
                path if mapped else file,
                map_location="cpu",
                weights_only=False,
                mmap=mapped,
                pickle_module=inert_pickle.module(torch),
            )
    except Exception as error:  # damaged pickles raise errors of all types
        raise_machine_fault(error, path)
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
            f"{path} has {name!r:.80} as {tensor.dtype} with layout {tensor.layout}, which NumPy does not support; "
            "expected a dense tensor of float32 or bfloat16"
        ) from error


def _to_torch(torch: ModuleType, name: str, array: np.ndarray) -> Any:
    is_bfloat16 = array.dtype == ml_dtypes.bfloat16
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about read-only arrays, which are not written to
            tensor = torch.from_numpy(array.view(np.int16) if is_bfloat16 else array)
    except TypeError:
        raise WeightsError(
            f"{name} is {array.dtype}, which PyTorch does not support; expected float32 or bfloat16"
        ) from None
    return tensor.view(torch.bfloat16) if is_bfloat16 else tensor
