"""Pure functions on arrays."""

from mambaout_jax.ops.activations import gelu
from mambaout_jax.ops.depthwise import depthwise_conv2d
from mambaout_jax.ops.norm import layer_norm
from mambaout_jax.ops.product import product
from mambaout_jax.ops.strided import strided_conv2d

__all__ = ["depthwise_conv2d", "gelu", "layer_norm", "product", "strided_conv2d"]
