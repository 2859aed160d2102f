"""Conversion of a single Mamba block from and to the package mamba_ssm."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from mambaout_jax.models import MambaBlock
from mambaout_jax.models.key_format import KeyFormat, Rule, same_names
from mambaout_jax.weights.state_dict import export_state_dict, load_state_dict
from mambaout_jax.weights.tensors import open_state_dict

# github.com/state-spaces/mamba at e9594ce1, mamba_ssm/modules/mamba_simple.py.
MAMBA_SSM = KeyFormat(
    "mamba_ssm",
    (
        *same_names("in_proj.*", "conv1d.*", "out_proj.*"),
        Rule("x_proj.*", "ssm.x_proj.*"),
        Rule("dt_proj.*", "ssm.dt_proj.*"),
        Rule("*", "ssm.*"),  # A_log and D
    ),
)


def mamba_block_from_torch(block: MambaBlock, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the state dict of a `mamba_ssm.Mamba` to the variables of a block, in float32; the match is exact.

    Raises:
        WeightsError: as in `from_torch`.
    """
    return load_state_dict(block.name, _shapes(block), MAMBA_SSM, *open_state_dict(state_dict))


def mamba_block_to_torch(block: MambaBlock, variables: dict[str, Any], dtype: str = "float32") -> dict[str, np.ndarray]:
    """Convert the variables of a block to the state dict of a `mamba_ssm.Mamba`, with arrays as values.

    Args:
        dtype: dtype of all tensors, "float32" or "bfloat16" (ml_dtypes.bfloat16).

    Raises:
        WeightsError: the variables belong to another block.
    """
    return export_state_dict(block.name, _shapes(block), MAMBA_SSM, variables, dtype)


def _shapes(block: MambaBlock) -> Any:
    return jax.eval_shape(block.init, jax.random.key(0))
