"""Conversion for programs: weights from PyTorch, weights for PyTorch."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from mambaout_jax.models import Model, create_model
from mambaout_jax.weights.checkpoint import TorchCheckpoint, read_checkpoint
from mambaout_jax.weights.errors import ConvertError
from mambaout_jax.weights.resolve import resolve_model
from mambaout_jax.weights.state_dict import from_tensors, to_tensors
from mambaout_jax.weights.tensors import open_state_dict


def from_torch(model: Model, source: str | os.PathLike | Mapping[str, Any]) -> dict[str, Any]:
    """Turn weights of a PyTorch program into a model's variables, in float32.

    The key format is recognised by the keys. The match is exact. Position embeddings of images of another size than
    the model's are resampled by timm's rule: from the size in config.json, or else from square images.

    Args:
        source: a .safetensors, .pth, .pt or .bin file, a Hugging Face folder in timm's format, a hub id
            (hf-hub:ORG/NAME), or a state dict of arrays or PyTorch tensors.

    Raises:
        ConvertError: the source cannot be read; parameters are missing, left over or of another shape (all are
            listed); or values are neither float32 nor bfloat16, or not finite.
    """
    if not isinstance(source, Mapping):
        return from_checkpoint(model, read_checkpoint(source))
    return from_tensors(model, *open_state_dict(source))


def from_checkpoint(model: Model, checkpoint: TorchCheckpoint) -> dict[str, Any]:
    """Turn weights that were opened into a model's variables, as `from_torch` does."""
    try:
        return from_tensors(model, checkpoint.tensors, checkpoint.shapes, _trained_size(checkpoint))
    except ConvertError as error:
        if str(error).startswith(checkpoint.origin):
            raise
        raise ConvertError(f"{checkpoint.origin}: {error}") from error


def _trained_size(checkpoint: TorchCheckpoint) -> tuple[int, int] | None:
    """Return (height, width) of the images in training, if a config says it."""
    size = checkpoint.config.preparation.get("img_size") if checkpoint.config else None
    return (size, size) if isinstance(size, int) else size


def to_torch(
    model: Model, variables: dict[str, Any], key_format: str | None = None, dtype: str = "float32"
) -> dict[str, np.ndarray]:
    """Turn a model's variables into a state dict of arrays; `torch.from_numpy` takes those of float32.

    Args:
        key_format: whose names: one of `model.family.key_formats`, not all of which can express every option; None
            for the first, which is timm's for the families that timm has.
        dtype: "float32" or "bfloat16" (ml_dtypes.bfloat16), of every tensor.

    Raises:
        ConvertError: the format cannot express the model, or the variables are those of another one.
    """
    return to_tensors(model, variables, key_format, dtype)


def load_pretrained(source: str | os.PathLike, **options: Any) -> tuple[Model, dict[str, Any]]:
    """Load a model with its weights; the model is found by the source's config.json or by the shapes.

    Args:
        source: as `from_torch` reads it, except a state dict.
        options: what to change of the model, as `create_model` takes it (img_size, dtype, drop_path_rate, ...).

    Raises:
        ConvertError: as for `from_torch`, or no registered variant has these shapes.
        ModelError: an option is unknown or out of its range.
    """
    checkpoint = read_checkpoint(source)
    resolved = resolve_model(checkpoint)
    model = create_model(resolved.name, **{**resolved.options, **options})
    return model, from_checkpoint(model, checkpoint)
