"""Conversion of weights from and to PyTorch."""

from mambaout_jax.weights.checkpoint import TorchCheckpoint, read_checkpoint
from mambaout_jax.weights.convert import (
    from_checkpoint,
    from_torch,
    load_pretrained,
    to_torch,
)
from mambaout_jax.weights.download import download_checkpoint, sha256
from mambaout_jax.weights.errors import NewHeadWarning, WeightsError, converting_file_errors
from mambaout_jax.weights.files import ENDINGS, check_file_target, write_file
from mambaout_jax.weights.folder import check_folder_target, write_folder
from mambaout_jax.weights.image_size import resample_variables
from mambaout_jax.weights.input_channels import adapt_first_layer
from mambaout_jax.weights.inspection import inspect_checkpoint
from mambaout_jax.weights.license import find_license, license_notice
from mambaout_jax.weights.mamba_block import mamba_block_from_torch, mamba_block_to_torch
from mambaout_jax.weights.options import model_args, other_options
from mambaout_jax.weights.resolve import (
    ResolvedModel,
    UnknownVariantError,
    check_not_reduced,
    check_unambiguous,
    resolve_model,
)
from mambaout_jax.weights.state_dict import differences, get_format
from mambaout_jax.weights.torch_file import import_torch
from mambaout_jax.weights.verify import TOLERANCE, LogitsCheck, check_timm, difference, random_images

__all__ = [
    "ENDINGS",
    "TOLERANCE",
    "LogitsCheck",
    "NewHeadWarning",
    "ResolvedModel",
    "TorchCheckpoint",
    "UnknownVariantError",
    "WeightsError",
    "adapt_first_layer",
    "check_file_target",
    "check_folder_target",
    "check_not_reduced",
    "check_timm",
    "check_unambiguous",
    "converting_file_errors",
    "difference",
    "differences",
    "download_checkpoint",
    "find_license",
    "from_checkpoint",
    "from_torch",
    "get_format",
    "import_torch",
    "inspect_checkpoint",
    "license_notice",
    "load_pretrained",
    "mamba_block_from_torch",
    "mamba_block_to_torch",
    "model_args",
    "other_options",
    "random_images",
    "read_checkpoint",
    "resample_variables",
    "resolve_model",
    "sha256",
    "to_torch",
    "write_file",
    "write_folder",
]
