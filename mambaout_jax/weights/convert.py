"""What a program uses: weights of PyTorch in, weights for PyTorch out."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from mambaout_jax.models import MambaBlock, Model, create_model
from mambaout_jax.weights.checkpoint import TorchCheckpoint, read_checkpoint
from mambaout_jax.weights.errors import ConvertError
from mambaout_jax.weights.key_maps import MAMBA_BLOCK_TABLE
from mambaout_jax.weights.resolve import identify
from mambaout_jax.weights.state_dict import Shape, fill, from_tensors, pour, to_tensors
from mambaout_jax.weights.tensors import LazyTensors, without_prefixes


def from_torch(model: Model, source: str | os.PathLike | Mapping[str, Any]) -> dict[str, Any]:
    """Turn weights of a PyTorch program into a model's variables, in float32.

    The dialect, timm's or the original repository's, is told by the keys. The match is exact.

    Args:
        source: a .safetensors, .pth, .pt or .bin file, a Hugging Face folder in timm's format, a hub id
            (hf-hub:ORG/NAME), or a state dict of arrays or PyTorch tensors.

    Raises:
        ConvertError: the source cannot be read; parameters are missing, left over or of another shape (all are
            listed); or values are neither float32 nor bfloat16, or not finite.
    """
    if not isinstance(source, Mapping):
        return from_checkpoint(model, read_checkpoint(source))
    return from_tensors(model, *_open(source))


def mamba_block_from_torch(block: MambaBlock, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the state dict of a `Mamba` of mamba_ssm into a block's variables, in float32; the match is exact.

    Raises:
        ConvertError: as for `from_torch`.
    """
    return fill(block, MAMBA_BLOCK_TABLE, *_open(state_dict))


def mamba_block_to_torch(block: MambaBlock, variables: dict[str, Any], dtype: str = "float32") -> dict[str, np.ndarray]:
    """Turn a block's variables into the state dict of a `Mamba` of mamba_ssm, of arrays.

    Args:
        dtype: "float32" or "bfloat16" (ml_dtypes.bfloat16), of every tensor.

    Raises:
        ConvertError: the variables are those of another block.
    """
    return pour(block, MAMBA_BLOCK_TABLE, variables, dtype)


def _open(state_dict: Mapping[str, Any]) -> tuple[LazyTensors, dict[str, Shape]]:
    for key, value in state_dict.items():
        if not isinstance(key, str) or not hasattr(value, "shape"):
            kind = type(value).__name__
            raise ConvertError(f"the state dict holds a {kind} under {key!r}; a tensor under its name is expected")
    names = without_prefixes(list(state_dict))
    shapes = {name: tuple(state_dict[key].shape) for name, key in names.items()}
    return LazyTensors(names, state_dict.__getitem__), shapes


def from_checkpoint(model: Model, checkpoint: TorchCheckpoint) -> dict[str, Any]:
    """Do what `from_torch` does, with weights that were opened."""
    try:
        return from_tensors(model, checkpoint.tensors, checkpoint.shapes)
    except ConvertError as error:
        if str(error).startswith(checkpoint.origin):
            raise
        raise ConvertError(f"{checkpoint.origin}: {error}") from error


def to_torch(
    model: Model, variables: dict[str, Any], dialect: str = "timm", dtype: str = "float32"
) -> dict[str, np.ndarray]:
    """Turn a model's variables into a state dict of arrays; `torch.from_numpy` takes those of float32.

    Args:
        dialect: "timm", or "mambaout", the original repository's names, which not every option exists in.
        dtype: "float32" or "bfloat16" (ml_dtypes.bfloat16), of every tensor.

    Raises:
        ConvertError: the dialect cannot express the model, or the variables are those of another one.
    """
    return to_tensors(model, variables, dialect, dtype)


def load_pretrained(source: str | os.PathLike, **options: Any) -> tuple[Model, dict[str, Any]]:
    """Load a model with its weights; which one it is, the source tells by its config.json or by its shapes.

    Args:
        source: what `from_torch` reads, but for a state dict.
        options: what to change of the model, as `create_model` takes it (img_size, dtype, drop_path_rate, ...).

    Raises:
        ConvertError: as for `from_torch`, or the model is none that is known.
        ModelError: an option is unknown or out of its range.
    """
    checkpoint = read_checkpoint(source)
    identity = identify(checkpoint)
    model = create_model(identity.name, **{**identity.options, **options})
    return model, from_checkpoint(model, checkpoint)
