"""Adaptation of the first layer to another number of input channels."""

import math
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from mambaout_jax.models import Model


def adapt_first_layer(model: Model, variables: dict[str, Any]) -> dict[str, Any]:
    """Return variables whose first layer has the input channels of a model; all others are unchanged."""
    path = ("params", *model.first_conv, "weight")

    def adapt(key_path: tuple[Any, ...], leaf: Any) -> Any:
        if tuple(entry.key for entry in key_path) != path or leaf.shape[-2] == model.in_chans:
            return leaf
        return jax.device_put(adapt_kernel(np.asarray(leaf), model.in_chans))

    return jax.tree.map_with_path(adapt, variables)


def adapt_kernel(kernel: Float[np.ndarray, "h w i o"], in_chans: int) -> Float[np.ndarray, "h w j o"]:
    """Return a kernel for another number of channels, by the rule of `adapt_input_conv` in timm 1.0.31.

    For one channel, the kernel is summed over its channels. For more, the channels are repeated in order and scaled, so
    that the response to equal channels stays about the same.
    """
    base = kernel.shape[-2]
    if in_chans == 1:
        return kernel.sum(-2, keepdims=True)
    repeated = np.tile(kernel, (1, 1, math.ceil(in_chans / base), 1))[..., :in_chans, :]
    return repeated * np.float32(base / in_chans)
