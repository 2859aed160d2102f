"""VMamba: four stages of blocks that scan feature maps along rows and columns, in both directions.

Reference: Liu et al., VMamba: Visual State Space Model, 2024. The options are those of
github.com/MzeroMiko/VMamba at 2ed52ead, classification/models/vmamba.py.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mambaout_jax.checks import ConfigKey
from mambaout_jax.models.errors import ModelError
from mambaout_jax.models.layers.conv import convolve_and_normalize, default_conv2d
from mambaout_jax.models.layers.norm import LayerNorm
from mambaout_jax.models.layers.ss2d import CROSS_SCAN, SS2D
from mambaout_jax.models.layers.vss import (
    STAGE_OPTIONS,
    VSSM,
    Head,
    PatchEmbedding,
    PatchMerging,
    Stage,
    VSSBlock,
    check_stages,
)
from mambaout_jax.models.options import BLOCKS, COMMON, SCAN_IMPL, require
from mambaout_jax.ops import gelu


class ConvPatchEmbedding(nnx.Module):
    """Two strided convolutions, each with a norm, from an image to a map of a quarter of its size."""

    def __init__(self, in_chans: int, dim: int, *, dtype: jnp.dtype):
        self.conv1 = default_conv2d(in_chans, dim // 2, 3, stride=2, padding=1, dtype=dtype)
        self.norm1 = LayerNorm(dim // 2, eps=1e-5)
        self.conv2 = default_conv2d(dim // 2, dim, 3, stride=2, padding=1, dtype=dtype)
        self.norm2 = LayerNorm(dim, eps=1e-5)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b ho wo d"]:
        x = convolve_and_normalize(self.conv1, self.norm1, x)
        return convolve_and_normalize(self.conv2, self.norm2, gelu(x))


class ConvDownsample(nnx.Module):
    """A strided convolution and a norm; the map is halved."""

    def __init__(self, dim: int, out_dim: int, *, dtype: jnp.dtype):
        self.conv = default_conv2d(dim, out_dim, 3, stride=2, padding=1, dtype=dtype)
        self.post_norm = LayerNorm(out_dim, eps=1e-5)

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b ho wo e"]:
        return convolve_and_normalize(self.conv, self.post_norm, x)


PATCH_EMBEDDINGS = {"v1": PatchEmbedding, "v2": ConvPatchEmbedding}
DOWNSAMPLES = {"v1": PatchMerging, "v3": ConvDownsample}

# Names and values are those of the reference. Its norm_layer "ln" and "ln2d" are the same function here.
OPTIONS: Mapping[str, ConfigKey] = MappingProxyType(
    {
        **COMMON,
        **BLOCKS,
        **STAGE_OPTIONS,
        "depths": ConfigKey(tuple[int, ...], "1..1000", (2, 2, 8, 2), "blocks of each stage"),
        "ssm_d_state": ConfigKey(int, "1..1024", 1, "states per scanned channel"),
        "ssm_ratio": ConfigKey(float, ">0..64", 1.0, "ratio of scanned channels to dim"),
        "ssm_conv_bias": ConfigKey(bool, None, False, "bias of the depthwise convolution"),
        "forward_type": ConfigKey(
            str, ("v0", "v05_noz"), "v05_noz", "v0 gates the scans with SiLU(z); v05_noz has no gate"
        ),
        "mlp_ratio": ConfigKey(float, "0..64", 4.0, "ratio of hidden channels of the MLP to dim; 0 for no MLP"),
        "patchembed_version": ConfigKey(
            str, tuple(PATCH_EMBEDDINGS), "v2", "one convolution of 4x4 patches (v1), or two strided convolutions (v2)"
        ),
        "downsample_version": ConfigKey(
            str, tuple(DOWNSAMPLES), "v3", "a linear layer on 2x2 windows (v1), or a strided convolution (v3)"
        ),
        "scan_impl": SCAN_IMPL,
    }
)


class VMamba(VSSM):
    """VMamba, with the options of `OPTIONS`.

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
        ssm_d_state: int,
        ssm_ratio: float,
        ssm_dt_rank: int | None,
        ssm_conv: int,
        ssm_conv_bias: bool,
        forward_type: str,
        mlp_ratio: float,
        patchembed_version: str,
        downsample_version: str,
        drop_path_rate: float,
        drop_rate: float,
        scan_impl: str,
        dtype: str,
        scan_blocks: bool,
        remat: str,
    ):
        check_stages(depths, dims, ssm_conv)
        if patchembed_version == "v2" and dims[0] < 2:
            raise ModelError(f"dims is {dims}; patchembed_version 'v2' requires at least 2 channels in the first stage")
        require.ratio("ssm_ratio", ssm_ratio, min(dims))
        if mlp_ratio:
            require.ratio("mlp_ratio", mlp_ratio, min(dims))
        dtype = jnp.dtype(dtype)

        def block(dim: int) -> VSSBlock:
            op = SS2D(
                dim,
                ratio=ssm_ratio,
                directions=CROSS_SCAN,
                d_state=ssm_d_state,
                dt_rank=ssm_dt_rank,
                kernel_size=ssm_conv,
                conv_bias=ssm_conv_bias,
                gated=forward_type == "v0",
                impl=scan_impl,
                dtype=dtype,
            )
            return VSSBlock(dim, op, mlp_ratio=mlp_ratio, dtype=dtype)

        downsample = DOWNSAMPLES[downsample_version]
        super().__init__(
            PATCH_EMBEDDINGS[patchembed_version](in_chans, dims[0], dtype=dtype),
            [
                Stage([block(dim) for _ in range(depth)], downsample(dim, after, dtype=dtype) if after else None)
                for depth, dim, after in zip(depths, dims, (*dims[1:], None), strict=True)
            ],
            Head(dims[-1], num_classes, drop_rate=drop_rate, dtype=dtype),
            drop_path_rate=drop_path_rate,
            scan_blocks=scan_blocks,
            remat=remat,
        )
