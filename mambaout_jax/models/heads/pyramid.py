"""Four feature maps from the maps of a plain backbone, which all have the stride of a patch."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mambaout_jax.models.key_format import Rule, permute
from mambaout_jax.models.layers.conv import ConvTranspose2d
from mambaout_jax.models.layers.norm import BatchNorm
from mambaout_jax.ops import gelu


class FeaturePyramid(nnx.Module):
    """Four maps at 4, 2, 1 and 1/2 times the size of the backbone's, by learned upsampling and max pooling.

    Reference: mmsegmentation 1.2.2, `Feature2Pyramid`, of the segmentation models of BEiT and MAE.
    """

    def __init__(self, dim: int, *, dtype: jnp.dtype):
        self.upsample_4x = nnx.List(
            [ConvTranspose2d(dim, dim, 2, dtype=dtype), BatchNorm(dim), ConvTranspose2d(dim, dim, 2, dtype=dtype)]
        )
        self.upsample_2x = ConvTranspose2d(dim, dim, 2, dtype=dtype)

    def __call__(self, maps: Sequence[Float[Array, "b h w d"]]) -> list[Float[Array, "b _ _ d"]]:
        first, norm, second = self.upsample_4x
        return [
            second(gelu(norm(first(maps[0])))),
            self.upsample_2x(maps[1]),
            maps[2],
            nnx.max_pool(maps[3], (2, 2), strides=(2, 2)),
        ]


def pyramid_rules(prefix: str) -> tuple[Rule, ...]:
    """Return the names of the attribute `pyramid` of a model, in a program that calls it `prefix`."""
    transposed = permute(2, 3, 0, 1)
    return (
        Rule(f"{prefix}.upsample_4x.0.weight", "pyramid.upsample_4x.0.weight", transposed),
        Rule(f"{prefix}.upsample_4x.0.bias", "pyramid.upsample_4x.0.bias"),
        Rule(f"{prefix}.upsample_4x.1.*", "pyramid.upsample_4x.1.*"),
        Rule(f"{prefix}.upsample_4x.3.weight", "pyramid.upsample_4x.2.weight", transposed),
        Rule(f"{prefix}.upsample_4x.3.bias", "pyramid.upsample_4x.2.bias"),
        Rule(f"{prefix}.upsample_2x.0.weight", "pyramid.upsample_2x.weight", transposed),
        Rule(f"{prefix}.upsample_2x.0.bias", "pyramid.upsample_2x.bias"),
    )
