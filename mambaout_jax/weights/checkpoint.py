"""PyTorch weights from a file, a folder or the hub."""

import os
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mambaout_jax.weights.errors import ConvertError
from mambaout_jax.weights.files import read_file
from mambaout_jax.weights.folder import find_weights
from mambaout_jax.weights.hub import PREFIXES, download
from mambaout_jax.weights.timm_config import CONFIG_NAME, TimmConfig, read_config

_LOCAL_PREFIX = "local-dir:"  # of a folder, in timm


class TorchCheckpoint(NamedTuple):
    """The weights of a PyTorch file, folder or hub id, under its own names.

    Args:
        origin: as the user typed it.
        tensors: one is read at each access and not kept; bfloat16 is ml_dtypes.bfloat16.
        shapes, dtypes: known without reading.
        wrapper: the entry of a file with several, for example "model_ema".
        config: of a folder or hub id.
    """

    origin: str
    tensors: Mapping[str, np.ndarray]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    wrapper: str | None
    config: TimmConfig | None


def read_checkpoint(source: str | os.PathLike) -> TorchCheckpoint:
    """Open weights: a file, a folder in timm's format, or hf-hub:ORG/NAME[@REVISION].

    Code in a file is not run.

    Raises:
        ConvertError: it does not exist, cannot be fetched, is damaged, or is something else.
    """
    origin = os.fspath(source)
    if origin.startswith(PREFIXES):
        config_path, weights = download(origin)
        config = read_config(config_path, origin)
    elif os.path.isdir(folder := os.path.expanduser(origin.removeprefix(_LOCAL_PREFIX))):
        if os.path.isdir(os.path.join(folder, "checkpoints")):
            raise ConvertError(f"{origin} is a workdir of this program; convert export takes its weights to PyTorch")
        config = read_config(os.path.join(folder, CONFIG_NAME), origin)
        weights = find_weights(folder, origin)
    elif origin.startswith(_LOCAL_PREFIX):
        raise ConvertError(f"{origin} is not a folder; one in timm's format, {CONFIG_NAME} and weights, is expected")
    elif not os.path.lexists(folder):
        raise ConvertError(f"{origin} does not exist; a file of weights, a folder or hf-hub:ORG/NAME is expected")
    else:
        config, weights = None, folder
    content = read_file(weights)
    return TorchCheckpoint(origin, *content, config)
