"""The patch embedding."""

import math

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mambaout_jax.models.layers.conv import Conv2d
from mambaout_jax.models.layers.parameters import uniform_within


class PatchEmbed(nnx.Module):
    """A convolution of an image to tokens in row-major order or to a feature map, with an optional norm.

    Args:
        patch_size: side of a patch in pixels.
        stride: distance between neighboring patches in pixels; None for patch_size.
        norm: norm of the tokens or the feature map.
        flatten: return tokens (b, l, d), not a feature map (b, h, w, d).
    """

    def __init__(
        self,
        in_chans: int,
        dim: int,
        patch_size: int,
        *,
        stride: int | None = None,
        norm: nnx.Module | None = None,
        flatten: bool = True,
        dtype: jnp.dtype,
    ):
        # PyTorch's default initialization of convolutions, as in the reference implementations.
        initializer = uniform_within(1 / math.sqrt(patch_size**2 * in_chans))
        self.proj = Conv2d(
            in_chans,
            dim,
            patch_size,
            stride=patch_size if stride is None else stride,
            initializer=initializer,
            bias_initializer=initializer,
            dtype=dtype,
        )
        self.norm = norm
        self.flatten = flatten

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b ... d"]:
        x = self.proj(x)
        if self.flatten:
            b, h, w, d = x.shape
            x = x.reshape(b, h * w, d)
        return x if self.norm is None else self.norm(x)
