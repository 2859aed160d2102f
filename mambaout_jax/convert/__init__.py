"""Weights of PyTorch programs, in both directions."""

from mambaout_jax.convert.checkpoint import TorchCheckpoint, read_checkpoint
from mambaout_jax.convert.drafts import draft_folder, put_folder
from mambaout_jax.convert.errors import ConvertError
from mambaout_jax.convert.files import ENDINGS, write_file
from mambaout_jax.convert.folder import write_folder
from mambaout_jax.convert.identity import Identity, identify
from mambaout_jax.convert.inspection import inspect_checkpoint
from mambaout_jax.convert.options import model_args, other_options
from mambaout_jax.convert.state_dict import differences
from mambaout_jax.convert.verify import LogitsCheck, random_images
from mambaout_jax.convert.weights import (
    from_checkpoint,
    from_torch,
    load_pretrained,
    mamba_block_from_torch,
    mamba_block_to_torch,
    to_torch,
)

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
