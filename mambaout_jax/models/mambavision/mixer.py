"""The token mixer of MambaVision: a selective scan next to a symmetric branch without one, and its ablations."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mambaout_jax.models.layers.conv import CausalConv1d, DepthwiseConv1d
from mambaout_jax.models.layers.linear import Linear
from mambaout_jax.models.layers.selective_ssm import SelectiveSSM
from mambaout_jax.ops.remat import saveable

# In the order in which they lead from Mamba's mixer to MambaVision's.
TOKEN_MIXERS = ("causal_conv", "conv", "gated", "concat")


class CenteredConv1d(DepthwiseConv1d):
    """A depthwise convolution of a sequence, centered on the current step; `weight` is (k, 1, d)."""

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        around = self.weight.shape[0] - 1
        return self._convolve(x, around // 2, around - around // 2)


class TwiceBiasedSSM(SelectiveSSM):
    """A selective scan to whose step sizes the bias of `dt_proj` is added twice, as in the published models.

    All matrices start as N(0, 0.02^2) and the bias as 0.
    """

    def __init__(self, channels: int, *, d_state: int, dt_rank: int, impl: str, dtype: jnp.dtype):
        super().__init__(channels, d_state=d_state, dt_rank=dt_rank, impl=impl, dtype=dtype)
        self.x_proj = Linear(channels, dt_rank + 2 * d_state, bias=False, dtype=dtype)
        self.dt_proj = Linear(dt_rank, channels, dtype=dtype)

    def _step_size(self):
        return {"delta_bias": 2.0 * self.dt_proj.bias[...], "delta_softplus": True}


class MambaVisionMixer(nnx.Module):
    """out_proj(concat(SSM(SiLU(conv1d_x(x))), SiLU(conv1d_z(z)))) with (x, z) = in_proj(input), two halves of width.

    Args:
        d_state: states per channel of the scan.
        d_conv: kernel size of the convolutions, in tokens.
        token_mixer: "concat" as above; "gated" multiplies the branches instead of concatenating them; "conv" is gated,
            and z is not convolved; "causal_conv" is like "conv" with a causal convolution, as in Mamba.
    """

    def __init__(
        self,
        dim: int,
        *,
        d_state: int = 8,
        d_conv: int = 3,
        token_mixer: str = "concat",
        scan_impl: str = "auto",
        dtype: jnp.dtype,
    ):
        half = dim // 2
        self.in_proj = Linear(dim, 2 * half, bias=False, dtype=dtype)
        conv = CausalConv1d if token_mixer == "causal_conv" else CenteredConv1d
        self.conv1d_x = conv(half, d_conv, bias=False, dtype=dtype)
        convolves_z = token_mixer in ("gated", "concat")
        self.conv1d_z = CenteredConv1d(half, d_conv, bias=False, dtype=dtype) if convolves_z else None
        self.ssm = TwiceBiasedSSM(half, d_state=d_state, dt_rank=math.ceil(dim / 16), impl=scan_impl, dtype=dtype)
        self.out_proj = Linear(2 * half if token_mixer == "concat" else half, dim, bias=False, dtype=dtype)
        self.token_mixer = token_mixer

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        x, z = self.in_proj.apply_split(x, [self.conv1d_x.weight.shape[-1]])
        z = jax.nn.silu(z if self.conv1d_z is None else self.conv1d_z(z))
        y = saveable(self.ssm(jax.nn.silu(self.conv1d_x(x))))
        return self.out_proj.apply_concat(y, z) if self.token_mixer == "concat" else self.out_proj(y * z)
