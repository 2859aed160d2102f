"""Branches of a Mamba block, one per direction of the scan, computed as one selective scan."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mambaout_jax.models.layers.conv import CausalConv1d
from mambaout_jax.models.layers.linear import Linear
from mambaout_jax.models.layers.parameters import Initializer, ones, parameter
from mambaout_jax.models.layers.selective_ssm import initial_decay
from mambaout_jax.ops import matmul, selective_scan
from mambaout_jax.ops.remat import saveable


class ScanInputs(NamedTuple):
    """The arguments of `selective_scan` for one direction, with A = -exp(A_log); delta is without bias and softplus."""

    u: Float[Array, "b l e"]
    delta: Float[Array, "b l e"]
    A_log: Float[Array, "e n"]
    B: Float[Array, "b l n"]
    C: Float[Array, "b l n"]
    D: Float[Array, " e"]
    delta_bias: Float[Array, " e"]


class ScanBranch(nnx.Module):
    """The parameters of one direction: u = SiLU(conv1d(x)), (dt, B, C) = x_proj(u), delta = dt_proj(dt).

    Their names are those of github.com/state-spaces/mamba at e9594ce1, mamba_simple.py.

    Args:
        channels: channels of x.
        dt_rank: width of dt.
    """

    def __init__(
        self,
        channels: int,
        dt_rank: int,
        *,
        d_state: int,
        x_proj_initializer: Initializer,
        dt_initializer: Initializer,
        dt_bias_initializer: Initializer,
        dtype: jnp.dtype,
    ):
        self.conv1d = CausalConv1d(channels, 4, bias=True, dtype=dtype)
        self.x_proj = Linear(channels, dt_rank + 2 * d_state, bias=False, initializer=x_proj_initializer, dtype=dtype)
        self.dt_proj = Linear(
            dt_rank, channels, initializer=dt_initializer, bias_initializer=dt_bias_initializer, dtype=dtype
        )
        self.A_log = parameter((channels, d_state), initial_decay)
        self.D = parameter((channels,), ones)

    def __call__(self, x: Float[Array, "b l e"]) -> ScanInputs:
        """Compute the arguments of the scan of a sequence."""
        u = jax.nn.silu(self.conv1d(x))
        rank, d_state = self.dt_proj.weight.shape[0], self.A_log.shape[1]
        dt, B, C = jnp.split(self.x_proj(u), [rank, rank + d_state], axis=-1)
        # Without the bias, which the scan adds in float32.
        delta = saveable(matmul(dt, self.dt_proj.weight.astype(u.dtype)))
        return ScanInputs(u, delta, self.A_log[...], B, C, self.D[...], self.dt_proj.bias[...])


def pad_to_longest(sequences: Sequence[Float[Array, "b _ c"]]) -> list[Float[Array, "b l c"]]:
    """Return sequences with zeros at the end, so that all have the length of the longest."""
    longest = max(x.shape[1] for x in sequences)
    return [jnp.pad(x, ((0, 0), (0, longest - x.shape[1]), (0, 0))) for x in sequences]


def scan_jointly(
    directions: Sequence[ScanInputs],
    z: Sequence[Float[Array, "b l e"]] = (),
    *,
    impl: str,
) -> list[Float[Array, "b l e"]]:
    """Compute the scans of several sequences of one length as one scan of their channels side by side.

    Args:
        z: gate of each scan; none if empty.
    """
    u, delta, A_log, B, C, D, delta_bias = zip(*directions, strict=True)
    y = selective_scan(
        jnp.concatenate(u, axis=-1),
        jnp.concatenate(delta, axis=-1),
        -jnp.exp(jnp.concatenate(A_log)),
        jnp.stack(B, axis=2),
        jnp.stack(C, axis=2),
        jnp.concatenate(D),
        jnp.concatenate(z, axis=-1) if z else None,
        jnp.concatenate(delta_bias),
        delta_softplus=True,
        impl=impl,
    )
    return jnp.split(saveable(y), len(directions), axis=-1)
