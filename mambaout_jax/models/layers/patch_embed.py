"""The patch embedding."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mambaout_jax.models.layers.conv import default_conv2d


class PatchEmbed(nnx.Module):
    """A convolution of the patches of an image to tokens, row by row.

    Patches at the bottom and right that the image does not fill are filled with zeros.

    Args:
        patch_size: side of a patch in pixels.
    """

    def __init__(self, in_chans: int, dim: int, patch_size: int, *, dtype: jnp.dtype):
        self.proj = default_conv2d(in_chans, dim, patch_size, stride=patch_size, dtype=dtype)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b l d"]:
        side = self.proj.weight.shape[0]
        x = self.proj(jnp.pad(x, ((0, 0), (0, -x.shape[1] % side), (0, -x.shape[2] % side), (0, 0))))
        b, h, w, d = x.shape
        return x.reshape(b, h * w, d)
