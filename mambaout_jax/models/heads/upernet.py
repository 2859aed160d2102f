"""UperNet: semantic segmentation by a pyramid of pooled features and a feature pyramid network.

Reference: Xiao et al., Unified Perceptual Parsing for Scene Understanding, 2018; layers, initial values and parameter
names of mmsegmentation 1.2.2 (`UPerHead`, `FCNHead`).
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from mambaout_jax.checks import ConfigKey
from mambaout_jax.models.heads.dense_model import NUM_MAPS, DenseModel
from mambaout_jax.models.heads.head import Head
from mambaout_jax.models.heads.pyramid import pyramid_rules
from mambaout_jax.models.key_format import Rule
from mambaout_jax.models.layers.conv import Conv2d
from mambaout_jax.models.layers.drop import channel_dropout
from mambaout_jax.models.layers.norm import BatchNorm
from mambaout_jax.models.layers.parameters import kaiming_normal, normal_of
from mambaout_jax.ops import adaptive_avg_pool, resize_bilinear

# The map that the auxiliary head reads: the third, of stride 16 in most models.
AUXILIARY_MAP = 2

OPTIONS: Mapping[str, ConfigKey] = MappingProxyType(
    {
        "num_classes": ConfigKey(int, "1..1000000", 150, "number of classes"),
        "drop_rate": ConfigKey(
            float, "0..<1", 0.1, "rate at which channels are dropped before the classifiers", inference="none"
        ),
        "channels": ConfigKey(int, "1..65536", 512, "channels of the decode head"),
        "auxiliary_channels": ConfigKey(
            int, "1..65536", 256, "channels of the auxiliary head, which only training uses"
        ),
        "classifier_std": ConfigKey(
            float,
            ">0..1",
            0.01,
            "standard deviation of the initial weights of the classifiers; larger values, such as 1 / sqrt(channels), "
            "help without a pretrained backbone",
            inference="none",
        ),
        "pool_scales": ConfigKey(
            tuple[int, ...], "1..1000", (1, 2, 3, 6), "output sizes of the pyramid pooling module (PPM) on the last map"
        ),
        # 1e-5 in mmsegmentation's Swin and in VMamba, 1e-6 in ConvNeXt; MambaOut's is not published.
        "output_norm_eps": ConfigKey(float, ">0..1", 1e-6, "epsilon of the LayerNorm of each map of the backbone"),
    }
)


class ConvModule(nnx.Module):
    """A convolution without bias that keeps the size, batch norm and ReLU."""

    def __init__(self, in_chans: int, out_chans: int, kernel_size: int, *, dtype: jnp.dtype):
        self.conv = Conv2d(
            in_chans,
            out_chans,
            kernel_size,
            padding=kernel_size // 2,
            bias=False,
            initializer=kaiming_normal(kernel_size**2 * out_chans),
            dtype=dtype,
        )
        self.bn = BatchNorm(out_chans)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h w o"]:
        return jax.nn.relu(self.bn(self.conv(x)))


def _classifier(channels: int, num_classes: int, std: float, dtype: jnp.dtype) -> Conv2d:
    return Conv2d(channels, num_classes, 1, initializer=normal_of(std), dtype=dtype)


class UPerHead(nnx.Module):
    """The decode head: pooled features of the last map join a feature pyramid, whose levels are fused."""

    def __init__(
        self,
        in_chans: Sequence[int],
        channels: int,
        num_classes: int,
        *,
        pool_scales: Sequence[int],
        classifier_std: float,
        drop_rate: float,
        dtype: jnp.dtype,
    ):
        *lower, top = in_chans
        self.psp_modules = nnx.List(ConvModule(top, channels, 1, dtype=dtype) for _ in pool_scales)
        self.bottleneck = ConvModule(top + len(pool_scales) * channels, channels, 3, dtype=dtype)
        self.lateral_convs = nnx.List(ConvModule(width, channels, 1, dtype=dtype) for width in lower)
        self.fpn_convs = nnx.List(ConvModule(channels, channels, 3, dtype=dtype) for _ in lower)
        self.fpn_bottleneck = ConvModule(len(in_chans) * channels, channels, 3, dtype=dtype)
        self.conv_seg = _classifier(channels, num_classes, classifier_std, dtype)
        self.pool_scales = tuple(pool_scales)
        self.drop_rate = drop_rate

    def __call__(self, maps: Sequence[Array], key: Key[Array, ""] | None) -> Float[Array, "b h w k"]:
        return self.conv_seg(channel_dropout(self.features(maps), self.drop_rate, key)).astype(jnp.float32)

    def features(self, maps: Sequence[Array]) -> Float[Array, "b h w c"]:
        """Compute the input of the classifier, at the size of the first map."""
        levels = [lateral(x) for lateral, x in zip(self.lateral_convs, maps[:-1], strict=True)]
        levels.append(self._pool_pyramid(maps[-1]))
        for lower in range(len(levels) - 2, -1, -1):
            levels[lower] += resize_bilinear(levels[lower + 1], levels[lower].shape[1:3])
        levels[:-1] = [conv(x) for conv, x in zip(self.fpn_convs, levels[:-1], strict=True)]
        size = levels[0].shape[1:3]
        return self.fpn_bottleneck(jnp.concatenate([resize_bilinear(x, size) for x in levels], axis=-1))

    def _pool_pyramid(self, x):
        pooled = [
            resize_bilinear(module(adaptive_avg_pool(x, (scale, scale))), x.shape[1:3])
            for scale, module in zip(self.pool_scales, self.psp_modules, strict=True)
        ]
        return self.bottleneck(jnp.concatenate([x.astype(pooled[0].dtype), *pooled], axis=-1))


class FCNHead(nnx.Module):
    """The auxiliary head: one convolution of one map, and the classifier."""

    def __init__(
        self,
        in_chans: int,
        channels: int,
        num_classes: int,
        *,
        classifier_std: float,
        drop_rate: float,
        dtype: jnp.dtype,
    ):
        self.convs = nnx.List([ConvModule(in_chans, channels, 3, dtype=dtype)])
        self.conv_seg = _classifier(channels, num_classes, classifier_std, dtype)
        self.drop_rate = drop_rate

    def __call__(self, x: Float[Array, "b h w i"], key: Key[Array, ""] | None) -> Float[Array, "b h w k"]:
        return self.conv_seg(channel_dropout(self.convs[0](x), self.drop_rate, key)).astype(jnp.float32)


class UperNet(DenseModel):
    """UperNet on a backbone, with the options of `OPTIONS`."""

    def __init__(
        self,
        backbone: nnx.Module,
        *,
        num_classes: int,
        channels: int,
        auxiliary_channels: int,
        classifier_std: float,
        pool_scales: Sequence[int],
        output_norm_eps: float,
        drop_rate: float,
        dtype: str,
    ):
        dtype = jnp.dtype(dtype)
        super().__init__(backbone, eps=output_norm_eps, dtype=dtype)
        self.decode_head = UPerHead(
            self.feature_channels,
            channels,
            num_classes,
            pool_scales=pool_scales,
            classifier_std=classifier_std,
            drop_rate=drop_rate,
            dtype=dtype,
        )
        self.auxiliary_head = FCNHead(
            self.feature_channels[AUXILIARY_MAP],
            auxiliary_channels,
            num_classes,
            classifier_std=classifier_std,
            drop_rate=drop_rate,
            dtype=dtype,
        )

    @property
    def classifier(self) -> tuple[str, ...]:
        """Return the path of the last layer."""
        return ("decode_head", "conv_seg")

    # Both heads depend on the classes.
    output_layers = (("decode_head", "conv_seg"), ("auxiliary_head", "conv_seg"))

    def logits(self, images: Float[Array, "b h w i"], key: Key[Array, ""] | None) -> Float[Array, "b ho wo k"]:
        """Compute the logits of the classes at the size of the first map, a quarter of the image's for stride 4."""
        return self.decode_head(self.features(images, key), _fold(key, 0))

    def logits_with_auxiliary(
        self, images: Float[Array, "b h w i"], key: Key[Array, ""] | None
    ) -> tuple[Float[Array, "b ho wo k"], Float[Array, "b _ _ k"]]:
        """Compute the logits, and those of the auxiliary head at the size of the third map, for training."""
        maps = self.features(images, key)
        return self.decode_head(maps, _fold(key, 0)), self.auxiliary_head(maps[AUXILIARY_MAP], _fold(key, 1))


def _fold(key, head):
    # The backbone folds numbers of blocks into the key.
    return None if key is None else jax.random.fold_in(key, 2**31 + head)


# mmsegmentation 1.2.2: EncoderDecoder with UPerHead, FCNHead and, for plain backbones, Feature2Pyramid.
RULES = (
    *pyramid_rules("neck"),
    Rule("decode_head.psp_modules.#.1.*.*", "decode_head.psp_modules.#.*.*"),
    Rule("decode_head.lateral_convs.#.*.*", "decode_head.lateral_convs.#.*.*"),
    Rule("decode_head.fpn_convs.#.*.*", "decode_head.fpn_convs.#.*.*"),
    Rule("decode_head.*.*.*", "decode_head.*.*.*"),  # bottleneck and fpn_bottleneck
    Rule("decode_head.conv_seg.*", "decode_head.conv_seg.*"),
    Rule("auxiliary_head.convs.#.*.*", "auxiliary_head.convs.#.*.*"),
    Rule("auxiliary_head.conv_seg.*", "auxiliary_head.conv_seg.*"),
)


HEAD = Head(
    name="upernet", module=UperNet, options=OPTIONS, rules=RULES, key_format="mmseg", num_maps=NUM_MAPS, size=512
)
