"""PyTorch weights from a file, a folder or the hub."""

import os
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mambaout_jax.weights.errors import WeightsError
from mambaout_jax.weights.files import read_file
from mambaout_jax.weights.folder import find_weights
from mambaout_jax.weights.hub import PREFIXES, download
from mambaout_jax.weights.timm_config import CONFIG_NAME, TimmConfig, read_config

_LOCAL_PREFIX = "local-dir:"  # timm's prefix for a folder


class TorchCheckpoint(NamedTuple):
    """Weights in a PyTorch file, folder or hub repository, under their original names.

    Args:
        origin: path or hub id as typed by the user.
        tensors: tensors, read on each access and not cached; bfloat16 is ml_dtypes.bfloat16.
        shapes, dtypes: known without reading the tensors.
        wrapper: entry of the file that contains the weights, for example "model_ema".
        ignored: descriptions of everything else in the file.
        config: config.json of a folder or hub repository.
    """

    origin: str
    tensors: Mapping[str, np.ndarray]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    wrapper: str | None
    ignored: tuple[str, ...]
    config: TimmConfig | None


def read_checkpoint(source: str | os.PathLike, *, entry: str | None = None) -> TorchCheckpoint:
    """Open a weights file, a folder in timm's format, or hf-hub:ORG/NAME[@REVISION], without running code in it.

    Args:
        entry: entry of a file of torch.save that contains the weights, for example "model"; None to find it by its
            name, moving averages first.

    Raises:
        WeightsError: the source does not exist, cannot be downloaded, is damaged, or contains no weights.
    """
    origin = os.fspath(source)
    if origin.startswith(PREFIXES):
        config_path, weights = download(origin)
        config = read_config(config_path, origin)
    elif os.path.isdir(folder := os.path.expanduser(origin.removeprefix(_LOCAL_PREFIX))):
        if os.path.isdir(os.path.join(folder, "checkpoints")):
            raise WeightsError(
                f"{origin} is a workdir of this package; expected weights of PyTorch (load a workdir with mo.load_run, "
                "or set config.init_from to it)"
            )
        config = read_config(os.path.join(folder, CONFIG_NAME), origin)
        weights = find_weights(folder, origin)
    elif origin.startswith(_LOCAL_PREFIX):
        raise WeightsError(f"{origin} is not a folder; expected a folder in timm's format")
    elif not os.path.lexists(folder):
        raise WeightsError(f"{origin} does not exist; expected a weights file, a folder or hf-hub:ORG/NAME")
    else:
        config, weights = None, folder
    content = read_file(weights, entry)
    return TorchCheckpoint(origin, *content, config)
