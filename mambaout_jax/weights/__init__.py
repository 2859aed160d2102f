"""Weights of PyTorch programs, in both directions."""

from mambaout_jax.weights.checkpoint import TorchCheckpoint, read_checkpoint
from mambaout_jax.weights.convert import (
    from_checkpoint,
    from_torch,
    load_pretrained,
    mamba_block_from_torch,
    mamba_block_to_torch,
    to_torch,
)
from mambaout_jax.weights.drafts import draft_folder, put_folder
from mambaout_jax.weights.errors import ConvertError
from mambaout_jax.weights.files import ENDINGS, write_file
from mambaout_jax.weights.folder import write_folder
from mambaout_jax.weights.inspection import inspect_checkpoint
from mambaout_jax.weights.options import model_args, other_options
from mambaout_jax.weights.resolve import Identity, identify
from mambaout_jax.weights.state_dict import differences
from mambaout_jax.weights.verify import LogitsCheck, random_images

__all__ = [
    "ENDINGS",
    "ConvertError",
    "Identity",
    "LogitsCheck",
    "TorchCheckpoint",
    "differences",
    "draft_folder",
    "from_checkpoint",
    "from_torch",
    "identify",
    "inspect_checkpoint",
    "load_pretrained",
    "mamba_block_from_torch",
    "mamba_block_to_torch",
    "model_args",
    "other_options",
    "put_folder",
    "random_images",
    "read_checkpoint",
    "to_torch",
    "write_file",
    "write_folder",
]
