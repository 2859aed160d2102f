"""MambaOut: four stages of Gated CNN blocks, which are Mamba blocks without their state space model.

Reference: Yu and Wang, MambaOut: Do We Really Need Mamba for Vision?, CVPR 2025. The options and the parameter names
are those of timm's `mambaout.py`.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from mambaout_jax.checks import ConfigKey
from mambaout_jax.models.errors import ModelError
from mambaout_jax.models.layers.blocks import run_blocks
from mambaout_jax.models.layers.conv import Conv2d, convolve_and_normalize
from mambaout_jax.models.layers.drop import dropout
from mambaout_jax.models.layers.linear import ACTIVATIONS, Linear, activation
from mambaout_jax.models.layers.norm import LayerNorm
from mambaout_jax.models.mambaout.gated_cnn import GatedCNNBlock
from mambaout_jax.models.options import BLOCKS, COMMON, SCAN_IMPL
from mambaout_jax.ops import SCAN_ORDERS


class Stem(nnx.Module):
    """Two strided convolutions, from an image to a map of a quarter of its size."""

    def __init__(self, in_chans: int, dim: int, *, mid_norm: bool, act_layer: str, dtype: jnp.dtype):
        self.conv1 = Conv2d(in_chans, dim // 2, 3, stride=2, padding=1, dtype=dtype)
        self.norm1 = LayerNorm(dim // 2) if mid_norm else None
        self.conv2 = Conv2d(dim // 2, dim, 3, stride=2, padding=1, dtype=dtype)
        self.norm2 = LayerNorm(dim)
        self.act_layer = act_layer

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b ho wo d"]:
        x = self.conv1(x) if self.norm1 is None else convolve_and_normalize(self.conv1, self.norm1, x)
        return convolve_and_normalize(self.conv2, self.norm2, activation(self.act_layer)(x))


class Downsample(nnx.Module):
    """A strided convolution with a norm after it, or before it with `norm_first`; the map is halved."""

    def __init__(self, in_dim: int, dim: int, *, norm_first: bool, dtype: jnp.dtype):
        self.norm = LayerNorm(in_dim if norm_first else dim)
        self.conv = Conv2d(in_dim, dim, 3, stride=2, padding=1, dtype=dtype)
        self.norm_first = norm_first

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b ho wo d"]:
        return self.conv(self.norm(x)) if self.norm_first else convolve_and_normalize(self.conv, self.norm, x)


class Stage(nnx.Module):
    """Blocks of one resolution, after a downsampling in all stages but the first."""

    def __init__(self, downsample: Downsample | None, blocks: Sequence[GatedCNNBlock]):
        self.downsample = downsample
        self.blocks = nnx.List(blocks)


class PreLogits(nnx.Module):
    """A hidden layer of four times the width; only the published head has its `norm`."""

    def __init__(self, dim: int, *, norm: bool, dtype: jnp.dtype):
        self.fc = Linear(dim, 4 * dim, dtype=dtype)
        self.norm = LayerNorm(4 * dim) if norm else None

    def __call__(self, x: Float[Array, "b d"]) -> Float[Array, "b e"]:
        # Exact GELU for every `act_layer`: timm does not pass the option to the head.
        x = activation("gelu")(self.fc(x))
        return x if self.norm is None else self.norm(x)


class Head(nnx.Module):
    """Pooling, norm, hidden layer and dropout, and the linear layer `fc`, which `__call__` leaves to its caller."""

    def __init__(self, dim: int, num_classes: int, *, head_fn: str, drop_rate: float, dtype: jnp.dtype):
        self.norm = LayerNorm(dim)
        self.pre_logits = PreLogits(dim, norm=head_fn == "default", dtype=dtype)
        self.fc = Linear(4 * dim, num_classes, dtype=dtype)
        self.drop_rate = drop_rate

    def __call__(self, x: Float[Array, "b h w d"], key: Key[Array, ""] | None) -> Float[Array, "b e"]:
        x = self.norm(x.astype(jnp.float32).mean((1, 2)))
        return dropout(self.pre_logits(x), self.drop_rate, key)


# Names and defaults are those of timm 1.0.31, mambaout.py, except `token_mixer`, `scan_order` and `scan_impl`, which
# timm does not have.
OPTIONS: Mapping[str, ConfigKey] = MappingProxyType(
    {
        **COMMON,
        **BLOCKS,
        "depths": ConfigKey(tuple[int, ...], "1..1000", (3, 3, 9, 3), "blocks of each stage"),
        "dims": ConfigKey(tuple[int, ...], "1..65536", (96, 192, 384, 576), "channels of each stage"),
        "act_layer": ConfigKey(
            str, tuple(ACTIVATIONS), "gelu", "activation in the stem and the blocks; gelu is the exact one"
        ),
        "kernel_size": ConfigKey(int, "1..127", 7, "kernel size of the depthwise convolution, in pixels; odd"),
        "conv_ratio": ConfigKey(
            float,
            ">0..64",
            1.0,
            "ratio of convolved channels to dim; at most expansion_ratio",
        ),
        "expansion_ratio": ConfigKey(float, ">0..64", 8 / 3, "ratio of hidden channels to dim"),
        "stem_mid_norm": ConfigKey(bool, None, True, "normalize between the convolutions of the stem"),
        "ls_init_value": ConfigKey(
            float | None,
            "0..",
            None,
            "initial value of LayerScale, used as given; None for no LayerScale. timm ignores the value and always "
            "starts at 1e-5",
            inference="presence",
        ),
        "downsample": ConfigKey(
            str, ("conv", "conv_nf"), "conv", "norm after the convolution between stages, or before it (conv_nf)"
        ),
        "head_fn": ConfigKey(
            str,
            ("default", "norm_mlp"),
            "default",
            "default: pooling, norm, hidden layer, norm, classifier; norm_mlp: without the second norm",
        ),
        "token_mixer": ConfigKey(
            str,
            ("conv", "conv_ssm"),
            "conv",
            "conv_ssm adds Mamba's SSM after the convolution of each block",
        ),
        "scan_order": ConfigKey(
            str,
            tuple(SCAN_ORDERS),
            "causal",
            "order in which the SSM scans the feature map: row by row; also in reverse; or also along columns. Each "
            "direction has its own parameters. In every order, the convolution before the SSM sees "
            "(kernel_size - 1) / 2 rows and columns ahead",
        ),
        "scan_impl": SCAN_IMPL,
    }
)


class MambaOut(nnx.Module):
    """MambaOut, with the options of `OPTIONS`.

    Raises:
        ModelError: options do not fit together.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_chans: int,
        depths: Sequence[int],
        dims: Sequence[int],
        act_layer: str,
        kernel_size: int,
        conv_ratio: float,
        expansion_ratio: float,
        stem_mid_norm: bool,
        ls_init_value: float | None,
        downsample: str,
        head_fn: str,
        drop_path_rate: float,
        drop_rate: float,
        token_mixer: str,
        scan_order: str,
        scan_impl: str,
        dtype: str,
        scan_blocks: bool,
        remat: str,
    ):
        if len(depths) != len(dims):
            raise ModelError(f"depths is {depths} and dims {dims}; expected tuples of equal length")
        if dims[0] < 2:
            raise ModelError(f"dims is {dims}; expected at least 2 channels in the first stage")
        if kernel_size % 2 == 0:
            raise ModelError(f"kernel_size is {kernel_size}; expected an odd number, so that maps keep their size")
        if token_mixer == "conv" and scan_order != "causal":
            raise ModelError(
                f"scan_order is {scan_order!r} but token_mixer 'conv' has no scan; set token_mixer='conv_ssm'"
            )
        dtype = jnp.dtype(dtype)
        self.stem = Stem(in_chans, dims[0], mid_norm=stem_mid_norm, act_layer=act_layer, dtype=dtype)
        self.stages = nnx.List([])
        for index, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
            blocks = [
                GatedCNNBlock(
                    dim,
                    expansion_ratio=expansion_ratio,
                    conv_ratio=conv_ratio,
                    kernel_size=kernel_size,
                    act_layer=act_layer,
                    ls_init_value=ls_init_value,
                    scan_order=scan_order if token_mixer == "conv_ssm" else None,
                    scan_impl=scan_impl,
                    dtype=dtype,
                )
                for _ in range(depth)
            ]
            norm_first = downsample == "conv_nf"
            reduce = Downsample(dims[index - 1], dim, norm_first=norm_first, dtype=dtype) if index else None
            self.stages.append(Stage(reduce, blocks))
        self.head = Head(dims[-1], num_classes, head_fn=head_fn, drop_rate=drop_rate, dtype=dtype)
        self.dims = tuple(dims)
        self.drop_path_rates = tuple(np.linspace(0.0, drop_path_rate, sum(depths)).tolist())
        self.scan_blocks = scan_blocks
        self.remat = remat

    @property
    def first_conv(self) -> tuple[str, ...]:
        """Return the path of the first layer."""
        return ("stem", "conv1")

    @property
    def classifier(self) -> tuple[str, ...]:
        """Return the path of the last layer."""
        return ("head", "fc")

    @property
    def no_decay(self) -> tuple[tuple[str | int, ...], ...]:
        """Return the paths of the parameters without weight decay, vectors aside: those of the SSM's reference."""
        return tuple(
            ("stages", stage, "blocks", block, "ssm", direction, "A_log")
            for stage in range(len(self.stages))
            for block in range(len(self.stages[stage].blocks))
            for direction in range(len(self.stages[stage].blocks[block].ssm or ()))
        )

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Return the channels of each stage's map."""
        return self.dims

    @property
    def feature_strides(self) -> tuple[int, ...]:
        """Return the stride of each stage's map, in pixels."""
        return tuple(4 * 2**index for index in range(len(self.dims)))

    @property
    def scans(self) -> tuple[tuple[int, ...], ...]:
        """Return the directions, channels and states of the scans of a block, for each map."""
        ssms = [stage.blocks[0].ssm or () for stage in self.stages]
        return tuple((len(ssm), *ssm[0].A_log.shape) if ssm else () for ssm in ssms)

    def features(self, images: Float[Array, "b h w i"], key: Key[Array, ""] | None) -> list[Array]:
        """Compute the map of every stage."""
        x = self.stem(images)
        maps, first = [], 0
        for stage in self.stages:
            if stage.downsample is not None:
                x = stage.downsample(x)
            rates = self.drop_path_rates[first : first + len(stage.blocks)]
            x = run_blocks(stage.blocks, x, key, rates, first=first, scan=self.scan_blocks, remat=self.remat)
            first += len(stage.blocks)
            maps.append(x)
        return maps

    def embed(self, images: Float[Array, "b h w i"], key: Key[Array, ""] | None) -> Float[Array, "b e"]:
        """Compute the input of the last layer."""
        num_blocks = len(self.drop_path_rates)
        return self.head(self.features(images, key)[-1], None if key is None else jax.random.fold_in(key, num_blocks))

    def logits(self, images: Float[Array, "b h w i"], key: Key[Array, ""] | None) -> Float[Array, "b k"]:
        """Compute the logits."""
        return self.head.fc(self.embed(images, key)).astype(jnp.float32)
