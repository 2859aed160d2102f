"""Weights files: safetensors and files of torch.save."""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mambaout_jax.errors import reason
from mambaout_jax.machine import raise_machine_fault
from mambaout_jax.process import commit_file, scratch_folder, set_default_mode, sync
from mambaout_jax.storage import find_unknown_home
from mambaout_jax.weights.errors import WeightsError, converting_file_errors
from mambaout_jax.weights.tensors import LazyTensors, TensorFile, without_prefixes
from mambaout_jax.weights.torch_file import import_torch, read_torch, write_torch

TORCH_ENDINGS = (".pth", ".pt", ".bin", ".pth.tar")
ENDINGS = (".safetensors", *TORCH_ENDINGS)
_METADATA = {"format": "pt"}  # expected by PyTorch readers
_MAX_HEADER = 100_000_000  # bytes; safetensors refuses more
_DTYPES = {
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    "BF16": "bfloat16",
    "BOOL": "bool",
}


def read_file(path: str | os.PathLike, entry: str | None = None) -> TensorFile:
    """Open a weights file; the format is detected from the content, not from the extension.

    Args:
        entry: entry of a file of torch.save that contains the weights; None to find it by its name.

    Raises:
        WeightsError: the file cannot be read, is damaged, or contains no weights, or not in this entry.
    """
    path = os.fspath(path)
    kind = _kind(path)
    if kind == "safetensors" and entry is not None:
        raise WeightsError(f"{path} is a safetensors file, which has no entries; omit the entry {entry!r}")
    content = _read_safetensors(path) if kind == "safetensors" else read_torch(path, entry)
    if not content.shapes:
        raise WeightsError(f"{path} contains no tensors; expected the weights of a model")
    return content


def write_file(
    path: str | os.PathLike,
    tensors: Mapping[str, np.ndarray],
    *,
    force: bool = False,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write a weights file atomically, in the format of its extension.

    Args:
        force: replace an existing file.
        check: validates the temporary file before it is moved to `path`; raises if it is invalid.

    Raises:
        WeightsError: the extension is unknown, the path exists, or it cannot be written.
    """
    target = check_file_target(path, force)
    with converting_file_errors(target), scratch_folder(target) as folder:
        draft = folder / target.name
        write_tensors(draft, tensors)
        if check is not None:
            check(draft)
        commit_file(draft, target, replace=force)


def check_file_target(path: str | os.PathLike, force: bool, endings: tuple[str, ...] = ENDINGS) -> Path:
    """Check that a file may be written, and return its path without links.

    Args:
        endings: the extensions that it may have; those of weights files by default.

    Raises:
        WeightsError: see `write_file`.
        MissingExtraError: the format requires PyTorch, which is not installed.
    """
    if fault := find_unknown_home(path):
        raise WeightsError(f"{path} {fault}")
    target = Path(os.path.realpath(os.path.expanduser(path)))
    if not target.name.endswith(endings):
        expected = f"one of {', '.join(endings)}" if len(endings) > 1 else endings[0]
        raise WeightsError(f"{path} has an unknown extension; expected {expected}")
    with converting_file_errors(target):
        if os.path.lexists(target) and not target.is_file():
            raise WeightsError(f"{path} exists and is not a file; choose another path")
        if target.exists() and not force:
            raise WeightsError(f"{path} exists; choose another path, or replace it with --force")
    if target.name.endswith(TORCH_ENDINGS):
        import_torch(target.name)
    return target


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write tensors to a new file and sync it to disk.

    Raises:
        WeightsError: the format does not support the dtype of a tensor.
        OSError: the file cannot be written.
    """
    # safetensors ignores strides: it would write a transposed array in the memory order of its base.
    tensors = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    if path.name.endswith(TORCH_ENDINGS):
        write_torch(path, tensors)
    else:
        _write_safetensors(path, tensors)
    set_default_mode(path)
    sync(path)


def _kind(path: str) -> str:
    if not os.path.lexists(path):
        raise WeightsError(f"{path} does not exist; expected a weights file")
    if not os.path.isfile(path):
        raise WeightsError(f"{path} is not a file; expected a weights file")
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError as error:
        raise_machine_fault(error, path)
        raise WeightsError(f"{path} cannot be read ({reason(error)}); choose another file") from error
    if not head:
        raise WeightsError(f"{path} is empty; download or save it again")
    if head.startswith(b"PK\x03\x04"):
        return "torch"
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") <= _MAX_HEADER:
        return "safetensors"
    if head[0] == 0x80 and head[1:2] in (b"\1", b"\2", b"\3", b"\4", b"\5"):  # opcode of a pickle and its protocol
        return "torch"
    if path.endswith(".safetensors"):
        raise WeightsError(f"{path} is damaged or not a safetensors file; download or save it again")
    raise WeightsError(f"{path} is neither a safetensors nor a torch.save file; expected weights")


def _read_safetensors(path: str) -> TensorFile:
    from safetensors import SafetensorError, safe_open

    try:
        # With "pread", tensors do not stay in memory after they were read, unlike the pages of a mapped file.
        file = safe_open(path, framework="np", backend="pread")
        stored = list(file.keys())
        slices = {name: file.get_slice(name) for name in stored}
        shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
        codes = {name: part.get_dtype() for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise_machine_fault(error, path)
        words = str(error).splitlines()[0].rpartition(": ")[2]
        raise WeightsError(
            f"{path} is a damaged or truncated safetensors file ({words:.100}); download or save it again"
        ) from error
    names, outside = without_prefixes(stored)
    return TensorFile(
        LazyTensors(names, lambda name: _read_tensor(file, path, name, codes[name])),
        {name: shapes[key] for name, key in names.items()},
        {name: _DTYPES.get(codes[key], codes[key]) for name, key in names.items()},
        ignored=outside,
    )


def _read_tensor(file: Any, path: str, name: str, code: str) -> np.ndarray:
    try:
        return file.get_tensor(name)
    except Exception as error:  # unsupported dtypes and truncated files raise different types
        raise_machine_fault(error, path)
        raise WeightsError(
            f"{path} has {name!r:.80} as {code}, which could not be read; expected float32 or bfloat16"
        ) from error


def _write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file(dict(tensors), path, metadata=_METADATA)
    except SafetensorError as error:
        if found := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(found[1]), os.strerror(int(found[1]))) from error
        kinds = ", ".join(sorted({str(array.dtype) for array in tensors.values()}))
        raise WeightsError(f"{path.name} cannot store {kinds}; expected float32 or bfloat16") from error
