"""The selective state space model of Mamba as a layer.

Reference: Gu and Dao, Mamba: Linear-Time Sequence Modeling with Selective State Spaces, 2023. Parameter names and
initial values are those of github.com/state-spaces/mamba at e9594ce1, mamba_simple.py.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mambaout_jax.models.layers.linear import Linear
from mambaout_jax.models.layers.parameters import ones, parameter, uniform, uniform_within
from mambaout_jax.ops import SCAN_ORDERS, flatten_map, matmul, selective_scan, selective_scan_step, unflatten_map
from mambaout_jax.ops.remat import saveable

# Initial step sizes are log-uniform in [DT_MIN, DT_MAX] and clipped at DT_FLOOR.
DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4


class SelectiveSSM(nnx.Module):
    """A selective scan: h_t = exp(delta_t A) h_(t-1) + delta_t B_t x_t, y_t = C_t h_t + D x_t, gated by SiLU(z_t).

    (dt, B, C) = x_proj(x); delta = softplus(dt_proj(dt)); A = -exp(A_log). States and decay are float32.

    Args:
        dt_rank: width of dt; None for channels / 16, rounded up.
        impl: implementation of the scan, as in `selective_scan`.
    """

    def __init__(
        self, channels: int, *, d_state: int = 16, dt_rank: int | None = None, impl: str = "auto", dtype: jnp.dtype
    ):
        rank = math.ceil(channels / 16) if dt_rank is None else dt_rank
        bound = channels**-0.5
        self.x_proj = Linear(channels, rank + 2 * d_state, bias=False, initializer=uniform_within(bound), dtype=dtype)
        self.dt_proj = Linear(
            rank, channels, initializer=uniform_within(rank**-0.5), bias_initializer=initial_dt_bias, dtype=dtype
        )
        self.A_log = parameter((channels, d_state), initial_decay)
        self.D = parameter((channels,), ones)
        self.impl = impl
        self.dtype = dtype

    def __call__(
        self, x: Float[Array, "b l d"], z: Float[Array, "b l d"] | None = None, *, reverse: bool = False
    ) -> Float[Array, "b l d"]:
        x = x.astype(self.dtype)
        delta, B, C = self.project(x)
        options = {"reverse": reverse, "impl": self.impl, **self._step_size()}
        return selective_scan(x, delta, self._decay(), B, C, self.D[...], z, **options)

    def step(
        self, state: Float[Array, "b d n"], x: Float[Array, "b d"], z: Float[Array, "b d"] | None = None
    ) -> tuple[Float[Array, "b d"], Float[Array, "b d n"]]:
        """Compute the output at the next position of a sequence and the next state."""
        x = x.astype(self.dtype)
        delta, B, C = self.project(x)
        return selective_scan_step(state, x, delta, self._decay(), B, C, self.D[...], z, **self._step_size())

    def project(
        self, x: Float[Array, "*batch d"]
    ) -> tuple[Float[Array, "*batch d"], Float[Array, "*batch n"], Float[Array, "*batch n"]]:
        """Compute delta (before bias and softplus), B and C from the input."""
        rank, (_, d_state) = self.dt_proj.weight.shape[0], self.A_log.shape
        dt, B, C = jnp.split(self.x_proj(x), [rank, rank + d_state], axis=-1)
        # Without the bias, which the scan adds in float32.
        return saveable(matmul(dt, self.dt_proj.weight.astype(self.dtype))), B, C

    def _decay(self):
        return -jnp.exp(self.A_log[...])

    def _step_size(self):
        return {"delta_bias": self.dt_proj.bias[...], "delta_softplus": True}


def scan_2d(ssms: Sequence[SelectiveSSM], x: Float[Array, "b h w c"], scan_order: str) -> Float[Array, "b h w c"]:
    """Compute the sum of scans of a feature map in all directions of a scan order, with one layer per direction."""
    _, h, w, _ = x.shape
    scans = [
        (ssm(flatten_map(x, columns=direction.columns), reverse=direction.reverse), direction.columns)
        for ssm, direction in zip(ssms, SCAN_ORDERS[scan_order], strict=True)
    ]
    return sum(unflatten_map(scan, h, w, columns=columns) for scan, columns in scans)


def initial_decay(noise: Float[Array, "d n"]) -> Float[Array, "d n"]:
    """Return ln(1), ..., ln(n) for each channel."""
    return jnp.broadcast_to(jnp.log(jnp.arange(1, noise.shape[1] + 1, dtype=noise.dtype)), noise.shape)


def initial_dt_bias(noise: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return the bias whose softplus is a step size, log-uniform between DT_MIN and DT_MAX."""
    low, high = math.log(DT_MIN), math.log(DT_MAX)
    dt = jnp.maximum(jnp.exp(low + (high - low) * uniform(noise)), DT_FLOOR)
    return dt + jnp.log(-jnp.expm1(-dt))
