"""Vim: a plain backbone of Mamba blocks that scan the patches in both directions.

Reference: Zhu et al., Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model,
2024; github.com/hustvl/Vim at dd0358ad, vim/models_mamba.py and mamba-1p1p1/mamba_ssm/modules/mamba_simple.py.
"""

import functools
import math
from collections.abc import Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mambaout_jax.checks import ConfigKey
from mambaout_jax.models.errors import ModelError
from mambaout_jax.models.layers.conv import Conv2d
from mambaout_jax.models.layers.joint_scan import ScanBranch, ScanInputs, scan_jointly
from mambaout_jax.models.layers.linear import Linear
from mambaout_jax.models.layers.parameters import (
    Initializer,
    constant,
    normal,
    parameter,
    uniform,
    uniform_within,
    zeros,
)
from mambaout_jax.models.layers.patch_embed import PatchEmbed
from mambaout_jax.models.layers.selective_ssm import initial_decay, initial_dt_bias
from mambaout_jax.models.layers.vision_mamba import CLASS_TOKENS, VisionMamba
from mambaout_jax.models.options import BLOCKS, COMMON, IMG_SIZE, OUT_INDICES, SCAN_IMPL
from mambaout_jax.ops.channels import per_channel

OPTIONS: Mapping[str, ConfigKey] = MappingProxyType(
    {
        **COMMON,
        **BLOCKS,
        "img_size": IMG_SIZE,
        "patch_size": ConfigKey(int, "1..1024", 16, "side of a patch in pixels"),
        "stride": ConfigKey(int, "1..1024", 16, "stride of the patch embedding in pixels"),
        "embed_dim": ConfigKey(int, "1..65536", 192, "channels of a token"),
        "depth": ConfigKey(int, "1..1000", 24, "number of blocks"),
        "d_state": ConfigKey(int, "1..1024", 16, "states of the scan per channel"),
        "bimamba_type": ConfigKey(
            str,
            ("none", "v1", "v2"),
            "v2",
            "none: forward scan only; v1: also a backward scan with its own A; v2: also a backward scan with its own "
            "convolution and SSM",
        ),
        "divide_out": ConfigKey(bool, None, True, "use the mean of both scans of v2, not their sum"),
        "class_token": ConfigKey(
            str,
            CLASS_TOKENS,
            "middle",
            "position of class tokens fed to the classifier; none: the mean of all tokens; random: drawn for each "
            "forward pass in training, the middle otherwise",
        ),
        "rope": ConfigKey(
            bool, None, False, "apply rotary position embeddings (RoPE) before every block; for square images"
        ),
        "init_layer_scale": ConfigKey(
            float | None, "..", None, "initial value of LayerScale after the mixer; None for no LayerScale",
            inference="presence",
        ),
        "out_indices": OUT_INDICES,
        "scan_impl": SCAN_IMPL,
    }
)  # fmt: skip


class Vim(VisionMamba):
    """Vim, with the options of `OPTIONS`.

    Raises:
        ModelError: options do not fit together.
    """

    def __init__(
        self,
        *,
        img_size: tuple[int, int],
        patch_size: int,
        stride: int,
        embed_dim: int,
        depth: int,
        d_state: int,
        bimamba_type: str,
        divide_out: bool,
        class_token: str,
        rope: bool,
        init_layer_scale: float | None,
        out_indices: tuple[int, ...] | None,
        scan_impl: str,
        num_classes: int,
        in_chans: int,
        drop_path_rate: float,
        drop_rate: float,
        dtype: str,
        scan_blocks: bool,
        remat: str,
    ):
        img_size = tuple(img_size)
        if min(img_size) < patch_size:
            raise ModelError(f"img_size is {img_size}; expected at least patch_size {patch_size}")
        if rope and stride != patch_size:
            raise ModelError(f"stride is {stride}; expected the patch_size, {patch_size}, with rope")
        # The reference has one number of patches per side, by which it scales the positions of rows and columns.
        if rope and img_size[0] != img_size[1]:
            raise ModelError(f"img_size is {img_size}; expected square images with rope")
        dtype = jnp.dtype(dtype)
        self.patch_size = patch_size
        self.stride = stride
        super().__init__(
            [
                BidirectionalMixer(
                    embed_dim,
                    depth=depth,
                    d_state=d_state,
                    bimamba_type=bimamba_type,
                    divide_out=divide_out,
                    init_layer_scale=init_layer_scale,
                    scan_impl=scan_impl,
                    dtype=dtype,
                )
                for _ in range(depth)
            ],
            PatchEmbed(
                Conv2d(
                    in_chans,
                    embed_dim,
                    patch_size,
                    stride=stride,
                    initializer=lecun_normal(patch_size**2 * in_chans),
                    dtype=dtype,
                )
            ),
            img_size=img_size,
            grid=self.grid_of(img_size),
            stride=stride,
            embed_dim=embed_dim,
            class_token=class_token,
            class_token_initializer=normal,
            rope_grid=self.grid_of(img_size) if rope else None,
            out_indices=out_indices,
            num_classes=num_classes,
            drop_path_rate=drop_path_rate,
            drop_rate=drop_rate,
            dtype=dtype,
            scan_blocks=scan_blocks,
            remat=remat,
        )

    def grid_of(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """Return the rows and columns of patches of an image; the rest of its sides is ignored."""
        return tuple((side - self.patch_size) // self.stride + 1 for side in img_size)


@functools.cache
def lecun_normal(fan_in: int) -> Initializer:
    """Return the initializer of a normal distribution of variance 1 / fan_in, truncated at 2 standard deviations."""
    low, high = jax.scipy.special.ndtr(-2.0), jax.scipy.special.ndtr(2.0)
    scale = fan_in**-0.5 / 0.87962566103423978  # the standard deviation of the truncated N(0, 1)
    return lambda noise: scale * jax.scipy.special.ndtri(low + (high - low) * uniform(noise))


class Reversed(nnx.Module):
    """A scan of the same inputs as another one, from last to first, with its own decay."""

    def __init__(self, channels: int, d_state: int):
        self.A_log = parameter((channels, d_state), initial_decay)

    def __call__(self, inputs: ScanInputs) -> ScanInputs:
        u, delta, B, C = (jnp.flip(x, 1) for x in (inputs.u, inputs.delta, inputs.B, inputs.C))
        return inputs._replace(u=u, delta=delta, A_log=self.A_log[...], B=B, C=C)


class BidirectionalMixer(nnx.Module):
    """A sequence mixer: out_proj((forward(x) + backward(x)) * SiLU(z)) with (x, z) = in_proj(input).

    Args:
        depth: number of blocks of the model; the initial values of out_proj are smaller in deep ones.
    """

    def __init__(
        self,
        dim: int,
        *,
        depth: int,
        d_state: int,
        bimamba_type: str,
        divide_out: bool,
        init_layer_scale: float | None,
        scan_impl: str,
        dtype: jnp.dtype,
    ):
        inner, rank = 2 * dim, math.ceil(dim / 16)

        def branch(dt_bias_initializer: Initializer) -> ScanBranch:
            return ScanBranch(
                inner,
                rank,
                d_state=d_state,
                x_proj_initializer=uniform_within(inner**-0.5),
                dt_initializer=uniform_within(rank**-0.5),
                dt_bias_initializer=dt_bias_initializer,
                dtype=dtype,
            )

        self.in_proj = Linear(dim, 2 * inner, bias=False, initializer=uniform_within(dim**-0.5), dtype=dtype)
        self.forward = branch(initial_dt_bias)
        match bimamba_type:
            case "v2":  # the reference initializes the step sizes of the forward scan only
                self.backward = branch(zeros)
            case "v1":
                self.backward = Reversed(inner, d_state)
            case _:
                self.backward = None
        self.out_proj = Linear(inner, dim, bias=False, initializer=uniform_within((inner * depth) ** -0.5), dtype=dtype)
        self.gamma = None if init_layer_scale is None else parameter((dim,), constant(init_layer_scale))
        self.scale = 0.5 if bimamba_type == "v2" and divide_out else 1.0
        self.scan_impl = scan_impl

    @property
    def scans(self) -> tuple[int, int, int]:
        """Return the number of directions, their channels and the states per channel."""
        return 1 if self.backward is None else 2, *self.forward.A_log.shape

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        x, z = self.in_proj.apply_split(x, [self.out_proj.weight.shape[0]])
        scans = [self.forward(x)]
        # Backward sequences are reversed, so that both directions are one scan.
        if isinstance(self.backward, ScanBranch):
            scans.append(self.backward(jnp.flip(x, 1)))
        elif isinstance(self.backward, Reversed):
            scans.append(self.backward(scans[0]))
        y, *backward = scan_jointly(scans, impl=self.scan_impl)
        y = y + jnp.flip(backward[0], 1) if backward else y
        # The gate of both directions is the same.
        y = self.out_proj(self.scale * y * jax.nn.silu(z))
        return y if self.gamma is None else y * per_channel(self.gamma[...], y)
