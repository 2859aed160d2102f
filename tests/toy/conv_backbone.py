"""The backbone of the reference data of segmentation models: strided convolutions, with a name for each in PyTorch."""

import itertools

import jax.numpy as jnp
from flax import nnx

from mambaout_jax.checks import ConfigKey
from mambaout_jax.models.family import Family, Variant
from mambaout_jax.models.key_format import KeyFormat, same_names
from mambaout_jax.models.layers.conv import Conv2d
from mambaout_jax.models.layers.linear import Linear
from mambaout_jax.models.options import COMMON
from mambaout_jax.ops import gelu

OPTIONS = {**COMMON, "dims": ConfigKey(tuple[int, ...], "1..4096", (6, 12, 16, 24), "channels of each map")}


class ConvBackbone(nnx.Module):
    first_conv, classifier = ("stem", 0), ("head",)
    feature_strides = (4, 8, 16, 32)

    def __init__(self, *, dims, num_classes, in_chans, drop_rate, dtype):
        def conv(inputs, outputs):
            return Conv2d(inputs, outputs, 3, stride=2, padding=1, dtype=jnp.dtype(dtype))

        self.feature_channels = tuple(dims)
        self.stem = nnx.List([conv(in_chans, dims[0]), conv(dims[0], dims[0])])
        self.down = nnx.List(conv(*pair) for pair in itertools.pairwise(dims))
        self.head = Linear(dims[-1], num_classes, dtype=jnp.dtype(dtype))

    def features(self, images, key):
        x = gelu(self.stem[1](gelu(self.stem[0](images))))
        maps = [x]
        for down in self.down:
            maps.append(gelu(down(maps[-1])))
        return maps

    def embed(self, images, key):
        return self.features(images, key)[-1].mean((1, 2))

    def logits(self, images, key):
        return self.head(self.embed(images, key)).astype(jnp.float32)


FAMILY = Family(
    name="conv_backbone",
    module=ConvBackbone,
    options=OPTIONS,
    variants={"conv_backbone": Variant({}, size=64)},
    key_formats=(KeyFormat("conv_backbone", same_names("stem.#.*", "down.#.*", "head.*")),),
)
FAMILIES = (FAMILY,)
