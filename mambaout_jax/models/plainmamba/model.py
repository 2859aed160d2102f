"""PlainMamba: a non-hierarchical model of blocks that scan the feature map along continuous paths.

Reference: Yang et al., PlainMamba: Improving Non-Hierarchical Mamba in Visual Recognition, 2024;
github.com/ChenhongyiYang/PlainMamba at 0975a1d0, mmcls/plain_mamba_dev/models.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from mambaout_jax.checks import ConfigKey
from mambaout_jax.models.api import ParamPath
from mambaout_jax.models.errors import ModelError
from mambaout_jax.models.layers.blocks import chosen_blocks, run_blocks
from mambaout_jax.models.layers.conv import default_conv2d
from mambaout_jax.models.layers.drop import drop_path, dropout
from mambaout_jax.models.layers.linear import Linear
from mambaout_jax.models.layers.norm import BatchNorm, LayerNorm
from mambaout_jax.models.layers.parameters import normal, normal_of, parameter
from mambaout_jax.models.layers.position import check_image_size, resample_pos_embed
from mambaout_jax.models.options import BLOCKS, COMMON, IMG_SIZE, OUT_INDICES, SCAN_IMPL, require
from mambaout_jax.models.plainmamba.mixer import NUM_PATHS, SnakeMixer
from mambaout_jax.ops import gelu

STEM_CHANNELS = 64
MAX_CONVS = 8


class ConvNorm(nnx.Module):
    """A convolution without bias that keeps the size of the map divided by `stride`, and batch normalization."""

    def __init__(
        self, in_chans: int, out_chans: int, kernel_size: int, *, stride: int = 1, groups: int = 1, dtype: jnp.dtype
    ):
        self.conv = default_conv2d(
            in_chans,
            out_chans,
            kernel_size,
            stride=stride,
            padding=kernel_size // 2,
            groups=groups,
            bias=False,
            dtype=dtype,
        )
        self.norm = BatchNorm(out_chans)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b ho wo o"]:
        return self.norm(self.conv(x))


class ConvPatchEmbed(nnx.Module):
    """Convolutions at half the resolution, then a convolution of patches to tokens.

    The input of the last one is zero-padded at the bottom and right to whole patches.
    """

    def __init__(self, in_chans: int, dim: int, patch_size: int, num_convs: int, *, dtype: jnp.dtype):
        self.stem = ConvNorm(in_chans, STEM_CHANNELS, 7, stride=2, dtype=dtype)
        self.convs = nnx.List(ConvNorm(STEM_CHANNELS, STEM_CHANNELS, 3, dtype=dtype) for _ in range(num_convs))
        side = patch_size // 2
        self.proj = default_conv2d(STEM_CHANNELS, dim, side, stride=side, dtype=dtype)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b ho wo d"]:
        for layer in (self.stem, *self.convs):
            x = jax.nn.relu(layer(x))
        (_, h, w, _), (side, *_) = x.shape, self.proj.weight.shape
        return self.proj(jnp.pad(x, ((0, 0), (0, -h % side), (0, -w % side), (0, 0))))


class Block(nnx.Module):
    """One block: y = x + mixer(norm(x)); with `dwconv`, GELU(BatchNorm(conv(y))), which has no residual branch."""

    def __init__(self, dim: int, *, dwconv: bool, dtype: jnp.dtype, **mixer: Any):
        self.norm = LayerNorm(dim, eps=1e-5)
        self.mixer = SnakeMixer(dim, dtype=dtype, **mixer)
        self.dw = ConvNorm(dim, dim, 3, groups=dim, dtype=dtype) if dwconv else None

    def __call__(
        self,
        x: Float[Array, "b h w d"],
        key: Key[Array, ""] | None = None,
        drop_path_rate: float | Float[Array, ""] = 0.0,
    ) -> Float[Array, "b h w d"]:
        y = x + drop_path(self.mixer(self.norm(x)), drop_path_rate, key)
        return y if self.dw is None else gelu(self.dw(y))


OPTIONS: Mapping[str, ConfigKey] = MappingProxyType(
    {
        **COMMON,
        **BLOCKS,
        "img_size": IMG_SIZE,
        "patch_size": ConfigKey(int, "2..1024", 16, "side of a patch in pixels; even"),
        "embed_dim": ConfigKey(int, "1..65536", 192, "channels of a token"),
        "depth": ConfigKey(int, "1..1000", 24, "number of blocks"),
        "num_convs": ConfigKey(int, f"0..{MAX_CONVS}", 1, "3x3 convolutions between the stem and the patches"),
        "layers_with_dwconv": ConfigKey(
            tuple[int, ...] | None,
            "0..999",
            None,
            "indices of the blocks that end with a depthwise convolution; None for no block",
        ),
        "d_state": ConfigKey(int, "1..1024", 16, "states per channel of the scan"),
        "expand": ConfigKey(float, ">0..64", 2.0, "ratio of scanned channels to embed_dim"),
        "kernel_size": ConfigKey(int, "1..127", 7, "kernel size of the convolution before the scan, in pixels; odd"),
        "bias": ConfigKey(bool, None, True, "biases in the first and the last layer of the mixer"),
        "out_indices": OUT_INDICES,
        "scan_impl": SCAN_IMPL,
    }
)


class PlainMamba(nnx.Module):
    """PlainMamba, with the options of `OPTIONS`.

    The feature maps are the outputs of the blocks in `out_indices`, before any norm; all have the stride of a patch. It
    accepts images of `img_size` only.

    Raises:
        ModelError: options do not fit together.
    """

    def __init__(
        self,
        *,
        img_size: tuple[int, int],
        patch_size: int,
        embed_dim: int,
        depth: int,
        num_convs: int,
        layers_with_dwconv: Sequence[int] | None,
        d_state: int,
        expand: float,
        kernel_size: int,
        bias: bool,
        out_indices: Sequence[int] | None,
        scan_impl: str,
        num_classes: int,
        in_chans: int,
        drop_path_rate: float,
        drop_rate: float,
        dtype: str,
        scan_blocks: bool,
        remat: str,
    ):
        require.ratio("expand", expand, embed_dim)
        if patch_size % 2:
            raise ModelError(f"patch_size is {patch_size}; expected an even number, because the stem has stride 2")
        if kernel_size % 2 == 0:
            raise ModelError(f"kernel_size is {kernel_size}; expected an odd number, so that maps keep their size")
        self.with_dwconv = frozenset(layers_with_dwconv or ())
        if max(self.with_dwconv, default=0) >= depth:
            raise ModelError(
                f"layers_with_dwconv is {layers_with_dwconv}; expected indices of blocks from 0 to {depth - 1}"
            )
        self.out_indices = chosen_blocks(out_indices, depth)
        dtype = jnp.dtype(dtype)
        self.img_size = tuple(img_size)
        self.patch_size = patch_size
        self.patch_embed = ConvPatchEmbed(in_chans, embed_dim, patch_size, num_convs, dtype=dtype)
        self.pos_embed = parameter((1, math.prod(self._grid(self.img_size)), embed_dim), normal)
        self.blocks = nnx.List(
            Block(
                embed_dim,
                dwconv=index in self.with_dwconv,
                d_state=d_state,
                expand=expand,
                kernel_size=kernel_size,
                bias=bias,
                impl=scan_impl,
                dtype=dtype,
            )
            for index in range(depth)
        )
        self.norm = LayerNorm(embed_dim)
        self.head = Linear(embed_dim, num_classes, initializer=normal_of(0.01), dtype=dtype)
        self.drop_rate = drop_rate
        self.drop_path_rates = tuple(np.linspace(0.0, drop_path_rate, depth).tolist())
        self.scan_blocks = scan_blocks
        self.remat = remat

    # What the feature maps do not use.
    head_modules = ("norm", "head")

    @property
    def first_conv(self) -> tuple[str, ...]:
        """Return the path of the first layer."""
        return ("patch_embed", "stem", "conv")

    @property
    def classifier(self) -> tuple[str, ...]:
        """Return the path of the last layer."""
        return ("head",)

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Return the channels of each map."""
        return (self.pos_embed.shape[-1],) * len(self.out_indices)

    @property
    def feature_strides(self) -> tuple[int, ...]:
        """Return the stride of each map, in pixels."""
        return (self.patch_size,) * len(self.out_indices)

    @property
    def no_decay(self) -> tuple[tuple[str | int, ...], ...]:
        """Return the paths of the parameters without weight decay, vectors aside."""
        names = ("A_log", "direction_Bs")
        mixers = (("blocks", index, "mixer", name) for index in range(len(self.blocks)) for name in names)
        return (("pos_embed",), *mixers)

    @property
    def scans(self) -> tuple[tuple[int, ...], ...]:
        """Return the directions, channels and states of the scans of a block, for each map."""
        return ((NUM_PATHS, *self.blocks[0].mixer.A_log.shape),) * len(self.out_indices)

    def resample_params(
        self, params: Mapping[ParamPath, Any], img_size: tuple[int, int] | None = None
    ) -> dict[ParamPath, Any]:
        """Return parameters for images of this model's size, from those for images of another size.

        The position embeddings are resampled like `torch.nn.functional.interpolate(mode="bicubic")`, as in the
        reference; all others are returned as they are.

        Args:
            params: arrays by path: all parameters or some of them.
            img_size: (height, width) that they were trained at; None if unknown: then embeddings of another length
                are taken to be those of square images.
        """
        old_grid = None if img_size is None else self._grid(img_size)
        grid = self._grid(self.img_size)
        return resample_pos_embed(params, self.pos_embed.shape, grid, old_grid=old_grid, antialias=False)

    def features(self, images: Float[Array, "b h w i"], key: Key[Array, ""] | None) -> list[Array]:
        """Compute the maps of the chosen blocks."""
        x, maps = self._tokens(images), []
        for before, chosen in itertools.pairwise((-1, *self.out_indices)):
            x = self._run_blocks(x, key, range(before + 1, chosen + 1))
            maps.append(x)
        return maps

    def embed(self, images: Float[Array, "b h w i"], key: Key[Array, ""] | None) -> Float[Array, "b d"]:
        """Compute the input of the last layer."""
        x = self._run_blocks(self._tokens(images), key, range(len(self.blocks)))
        x = self.norm(x).astype(jnp.float32).mean((1, 2))
        return dropout(x, self.drop_rate, None if key is None else jax.random.fold_in(key, len(self.blocks)))

    def logits(self, images: Float[Array, "b h w i"], key: Key[Array, ""] | None) -> Float[Array, "b k"]:
        """Compute the logits."""
        return self.head(self.embed(images, key)).astype(jnp.float32)

    def _tokens(self, images):
        check_image_size(images, self.img_size)
        x = self.patch_embed(images)
        return x + self.pos_embed.astype(x.dtype).reshape(1, *x.shape[1:])

    def _run_blocks(self, x, key, indices):
        # In runs of blocks of one kind, which scan_blocks requires to be identical.
        for _, run in itertools.groupby(indices, self.with_dwconv.__contains__):
            run = list(run)
            x = run_blocks(
                [self.blocks[index] for index in run],
                x,
                key,
                [self.drop_path_rates[index] for index in run],
                first=run[0],
                scan=self.scan_blocks,
                remat=self.remat,
            )
        return x

    def _grid(self, img_size):
        """Return the rows and columns of patches, the last of which may be incomplete."""
        return tuple(-(-side // self.patch_size) for side in img_size)
