"""The block of MambaOut, and with a state space model the block of Mamba, on feature maps."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from mambaout_jax.models.errors import ModelError
from mambaout_jax.models.layers.conv import Conv2d
from mambaout_jax.models.layers.drop import drop_path_scale
from mambaout_jax.models.layers.linear import Linear, activation
from mambaout_jax.models.layers.norm import LayerNorm, LayerScale
from mambaout_jax.models.layers.selective_ssm import SelectiveSSM, scan_2d
from mambaout_jax.ops import SCAN_ORDERS, GatedCNNWeights, gated_cnn_block
from mambaout_jax.ops.remat import saveable
from mambaout_jax.words import count


class GatedCNNBlock(nnx.Module):
    """The Gated CNN block: a gated depthwise convolution.

    With (g, i, v) = fc1(norm(x)): x + fc2(act(g) * concat(i, conv(v))), computed as one matrix product per part,
    without the concatenation. With a scan order it is a Mamba block: conv(v) is replaced by the sum of
    SSM(SiLU(conv(v))) over all directions. Reference: MambaOut, equations 8 to 11.
    """

    def __init__(
        self,
        dim: int,
        *,
        expansion_ratio: float,
        conv_ratio: float,
        kernel_size: int,
        act_layer: str,
        ls_init_value: float | None,
        scan_order: str | None = None,
        scan_impl: str = "auto",
        dtype: jnp.dtype,
    ):
        hidden = int(expansion_ratio * dim)
        self.conv_channels = int(conv_ratio * dim)
        if not 0 < self.conv_channels <= hidden:
            raise ModelError(
                f"conv_ratio {conv_ratio} convolves {self.conv_channels} of {count(hidden, 'hidden channel')} "
                f"(expansion_ratio {expansion_ratio} of {dim}); expected at least 1/{dim} and at most expansion_ratio"
            )
        self.norm = LayerNorm(dim)
        self.fc1 = Linear(dim, 2 * hidden, dtype=dtype)
        channels = self.conv_channels
        self.conv = Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, dtype=dtype)
        directions = () if scan_order is None else SCAN_ORDERS[scan_order]
        ssms = [SelectiveSSM(self.conv_channels, impl=scan_impl, dtype=dtype) for _ in directions]
        self.ssm = nnx.List(ssms) if ssms else None
        self.scan_order = scan_order
        self.fc2 = Linear(hidden, dim, dtype=dtype)
        self.ls = None if ls_init_value is None else LayerScale(dim, ls_init_value)
        self.act_layer = act_layer
        self.dtype = dtype

    def __call__(
        self,
        x: Float[Array, "b h w d"],
        key: Key[Array, ""] | None = None,
        drop_path_rate: float | Float[Array, ""] = 0.0,
    ) -> Float[Array, "b h w d"]:
        weights = GatedCNNWeights(
            self.norm.weight[...],
            self.norm.bias[...],
            self.fc1.weight[...],
            self.fc1.bias[...],
            self.conv.weight[...],
            self.conv.bias[...],
            self.fc2.weight[...],
            self.fc2.bias[...],
            None if self.ls is None else self.ls.gamma[...],
        )
        return gated_cnn_block(
            x,
            weights,
            drop_path_scale(x, drop_path_rate, key),
            eps=self.norm.eps,
            dtype=self.dtype,
            act=activation(self.act_layer),
            mixer=None if self.ssm is None else self._scan,
        )

    def _scan(self, value: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return saveable(scan_2d(self.ssm, jax.nn.silu(value), self.scan_order))
