"""The hierarchy of VMamba: stages of residual blocks around SS2D, which other models share.

Reference: Liu et al., VMamba: Visual State Space Model, 2024; github.com/MzeroMiko/VMamba at 2ed52ead,
classification/models/vmamba.py. All norms have eps 1e-5.
"""

import itertools
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
from mambaout_jax.models.layers.conv import convolve_and_normalize, default_conv2d
from mambaout_jax.models.layers.drop import drop_path, dropout
from mambaout_jax.models.layers.linear import Linear, Mlp
from mambaout_jax.models.layers.norm import LayerNorm
from mambaout_jax.models.layers.ss2d import SS2D

# Of every model with these stages; names and defaults are those of the reference.
STAGE_OPTIONS: Mapping[str, ConfigKey] = MappingProxyType(
    {
        "dims": ConfigKey(tuple[int, ...], "1..65536", (96, 192, 384, 768), "channels of each stage"),
        "ssm_dt_rank": ConfigKey(
            int | None, "1..65536", None, "width of the step size projection; None for dim / 16, rounded up"
        ),
        "ssm_conv": ConfigKey(int, "1..127", 3, "kernel size of the depthwise convolution, in pixels; odd"),
    }
)


def check_stages(depths: Sequence[int], dims: Sequence[int], ssm_conv: int) -> None:
    """Check that stages have blocks and channels, and that convolutions keep the size of maps.

    Raises:
        ModelError: one of these does not hold.
    """
    if len(depths) != len(dims):
        raise ModelError(f"depths is {depths} and dims {dims}; expected tuples of equal length")
    if ssm_conv % 2 == 0:
        raise ModelError(f"ssm_conv is {ssm_conv}; expected an odd number, so that maps keep their size")


class PatchEmbedding(nnx.Module):
    """A convolution of patches of 4x4 pixels and a norm."""

    def __init__(self, in_chans: int, dim: int, *, dtype: jnp.dtype):
        self.conv1 = default_conv2d(in_chans, dim, 4, stride=4, dtype=dtype)
        self.norm1 = LayerNorm(dim, eps=1e-5)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b ho wo d"]:
        return convolve_and_normalize(self.conv1, self.norm1, x)


class PatchMerging(nnx.Module):
    """A linear layer on the normalized pixels of 2x2 windows; odd maps are padded with zeros, bottom and right."""

    def __init__(self, dim: int, out_dim: int, *, dtype: jnp.dtype):
        self.norm = LayerNorm(4 * dim, eps=1e-5)
        self.reduction = Linear(4 * dim, out_dim, bias=False, dtype=dtype)

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b ho wo e"]:
        b, h, w, d = x.shape
        x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
        windows = x.reshape(b, -(-h // 2), 2, -(-w // 2), 2, d)
        # Column by column within a window, as in the reference.
        windows = windows.transpose(0, 1, 3, 4, 2, 5).reshape(b, windows.shape[1], windows.shape[3], 4 * d)
        return self.reduction(self.norm(windows))


class VSSBlock(nnx.Module):
    """A residual block: y = x + op(norm(x)), then y + mlp(norm2(y)); drop path applies to each branch separately.

    Args:
        mlp_ratio: ratio of hidden channels of the MLP to dim; 0 for no MLP.
    """

    def __init__(self, dim: int, op: SS2D, *, mlp_ratio: float, dtype: jnp.dtype):
        self.norm = LayerNorm(dim, eps=1e-5)
        self.op = op
        self.norm2 = LayerNorm(dim, eps=1e-5) if mlp_ratio else None
        self.mlp = Mlp(dim, ratio=mlp_ratio, dtype=dtype) if mlp_ratio else None

    def __call__(
        self,
        x: Float[Array, "b h w d"],
        key: Key[Array, ""] | None = None,
        drop_path_rate: float | Float[Array, ""] = 0.0,
    ) -> Float[Array, "b h w d"]:
        keys = (None, None) if key is None else jax.random.split(key)
        x = x + drop_path(self.op(self.norm(x)), drop_path_rate, keys[0])
        if self.mlp is None:
            return x
        return x + drop_path(self.mlp(self.norm2(x)), drop_path_rate, keys[1])


class Stage(nnx.Module):
    """Blocks of one resolution, and a downsampling after them in all stages but the last."""

    def __init__(self, blocks: Sequence[VSSBlock], downsample: nnx.Module | None):
        self.blocks = nnx.List(blocks)
        self.downsample = downsample


class Head(nnx.Module):
    """Norm, mean over the map and dropout, and the linear layer `fc`, which `__call__` does not apply."""

    def __init__(self, dim: int, num_classes: int, *, drop_rate: float, dtype: jnp.dtype):
        self.norm = LayerNorm(dim, eps=1e-5)
        self.fc = Linear(dim, num_classes, dtype=dtype)
        self.drop_rate = drop_rate

    def __call__(self, x: Float[Array, "b h w d"], key: Key[Array, ""] | None) -> Float[Array, "b d"]:
        return dropout(self.norm(x).astype(jnp.float32).mean((1, 2)), self.drop_rate, key)


class VSSM(nnx.Module):
    """An image classifier of `patch_embed`, `layers` (stages) and `head`; the base class of models.

    The feature map of a stage is the output of its last block, before the downsampling. All matrices have weight
    decay, including A_logs and dt_projs_bias: the original training code exempts vectors only.
    """

    first_conv = ("patch_embed", "conv1")
    classifier = ("head", "fc")

    def __init__(
        self,
        patch_embed: nnx.Module,
        stages: Sequence[Stage],
        head: Head,
        *,
        drop_path_rate: float,
        scan_blocks: bool,
        remat: str,
    ):
        self.patch_embed = patch_embed
        self.layers = nnx.List(stages)
        self.head = head
        num_blocks = sum(len(stage.blocks) for stage in stages)
        self.drop_path_rates = tuple(np.linspace(0.0, drop_path_rate, num_blocks).tolist())
        self.scan_blocks = scan_blocks
        self.remat = remat

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Return the channels of each stage's map."""
        return tuple(stage.blocks[0].norm.weight.shape[0] for stage in self.layers)

    @property
    def feature_strides(self) -> tuple[int, ...]:
        """Return the stride of each stage's map, in pixels."""
        return tuple(4 * 2**index for index in range(len(self.layers)))

    @property
    def scans(self) -> tuple[tuple[int, ...], ...]:
        """Return the directions, channels and states of the scans of a block, for each map."""
        return tuple(max(block.op.scans for block in stage.blocks) for stage in self.layers)

    def features(self, images: Float[Array, "b h w i"], key: Key[Array, ""] | None) -> list[Array]:
        """Compute the map of every stage."""
        x = self.patch_embed(images)
        maps, first = [], 0
        for stage in self.layers:
            # Only neighbors that scan in the same directions can be one loop.
            for _, run in itertools.groupby(stage.blocks, lambda block: block.op.directions):
                blocks = list(run)
                rates = self.drop_path_rates[first : first + len(blocks)]
                x = run_blocks(blocks, x, key, rates, first=first, scan=self.scan_blocks, remat=self.remat)
                first += len(blocks)
            maps.append(x)
            if stage.downsample is not None:
                x = stage.downsample(x)
        return maps

    def embed(self, images: Float[Array, "b h w i"], key: Key[Array, ""] | None) -> Float[Array, "b d"]:
        """Compute the input of the last layer."""
        num_blocks = len(self.drop_path_rates)
        return self.head(self.features(images, key)[-1], None if key is None else jax.random.fold_in(key, num_blocks))

    def logits(self, images: Float[Array, "b h w i"], key: Key[Array, ""] | None) -> Float[Array, "b k"]:
        """Compute the logits."""
        return self.head.fc(self.embed(images, key)).astype(jnp.float32)
