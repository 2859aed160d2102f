"""The patch embedding."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mambaout_jax.models.layers.conv import Conv2d


class PatchEmbed(nnx.Module):
    """A convolution of the patches of an image to tokens, row by row.

    Args:
        proj: the convolution; patches overlap if its stride is smaller than its kernel.
        pad: zero-pad the image at the bottom and right to a multiple of the patch size, which requires patches that do
            not overlap; if False, incomplete patches are dropped.
    """

    def __init__(self, proj: Conv2d, *, pad: bool = False):
        self.proj = proj
        self.pad = pad

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b l d"]:
        if self.pad:
            side = self.proj.weight.shape[0]
            x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % side), (0, -x.shape[2] % side), (0, 0)))
        x = self.proj(x)
        b, h, w, d = x.shape
        return x.reshape(b, h * w, d)
