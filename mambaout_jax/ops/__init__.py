"""Pure functions on arrays."""

from mambaout_jax.ops.depthwise import depthwise_conv2d

__all__ = ["depthwise_conv2d"]
