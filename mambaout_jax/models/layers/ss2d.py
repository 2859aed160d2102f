"""SS2D: a sequence mixer for feature maps, by selective scans in several directions.

Reference: Liu et al., VMamba: Visual State Space Model, 2024; parameter names, shapes and initial values are those of
github.com/MzeroMiko/VMamba at 2ed52ead, classification/models/vmamba.py.
"""

import math
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mambaout_jax.models.layers.conv import default_conv2d
from mambaout_jax.models.layers.joint_scan import pad_to_longest
from mambaout_jax.models.layers.linear import Linear
from mambaout_jax.models.layers.norm import LayerNorm
from mambaout_jax.models.layers.parameters import ones, parameter, uniform_within
from mambaout_jax.models.layers.selective_ssm import initial_decay, initial_dt_bias
from mambaout_jax.ops import matmul, selective_scan
from mambaout_jax.ops.remat import saveable
from mambaout_jax.ops.scan_order import Direction


@runtime_checkable
class ScanDirection(Protocol):
    """An order of the pixels of a feature map."""

    def sequence(self, x: Float[Array, "b h w c"]) -> Float[Array, "b l c"]:
        """Return the pixels of a map as a sequence, which may contain zeros as padding."""

    def feature_map(self, y: Float[Array, "b l c"], height: int, width: int) -> Float[Array, "b h w c"]:
        """Return the map of a sequence, without its padding."""


# The order of VMamba's parameters.
CROSS_SCAN = tuple(Direction(columns, reverse) for reverse in (False, True) for columns in (False, True))


class SS2D(nnx.Module):
    """The mixer out_proj(out_norm(sum of scans of SiLU(conv(x))) * SiLU(z)) with (x, z) = in_proj(input).

    Each direction has its own parameters, stacked along the first axis. All directions are one selective scan of their
    channels side by side; shorter sequences are padded with zeros at the end.

    Args:
        dim: input and output channels.
        ratio: ratio of scanned channels to dim.
        directions: order of each scan.
        dt_rank: width of the step size projection; None for dim / 16, rounded up.
        kernel_size: side of the depthwise convolution; odd.
        gated: multiply the output by SiLU(z); if False, in_proj computes x only.
        scan_gate: applied to the output of each scan, its pixels row by row, before the sum.
        impl: implementation of the scan, as in `selective_scan`.
    """

    def __init__(
        self,
        dim: int,
        *,
        ratio: float,
        directions: Sequence[ScanDirection],
        d_state: int,
        dt_rank: int | None,
        kernel_size: int,
        conv_bias: bool,
        gated: bool,
        scan_gate: Callable[[Float[Array, "b l e"]], Float[Array, "b l e"]] | None = None,
        impl: str,
        dtype: jnp.dtype,
    ):
        inner, count = int(ratio * dim), len(directions)
        rank = math.ceil(dim / 16) if dt_rank is None else dt_rank
        self.in_proj = Linear(dim, 2 * inner if gated else inner, bias=False, dtype=dtype)
        self.conv2d = default_conv2d(
            inner, inner, kernel_size, padding=kernel_size // 2, groups=inner, bias=conv_bias, dtype=dtype
        )
        self.x_proj_weight = parameter((count, rank + 2 * d_state, inner), uniform_within(inner**-0.5))
        self.dt_projs_weight = parameter((count, inner, rank), uniform_within(rank**-0.5))
        self.dt_projs_bias = parameter((count, inner), initial_dt_bias)
        self.A_logs = parameter((count * inner, d_state), initial_decay)
        self.Ds = parameter((count * inner,), ones)
        self.out_norm = LayerNorm(inner, eps=1e-5)
        self.out_proj = Linear(inner, dim, bias=False, dtype=dtype)
        self.scan_gate = scan_gate
        self.directions = tuple(directions)
        self.gated = gated
        self.impl = impl
        self.dtype = dtype

    @property
    def scans(self) -> tuple[int, int, int]:
        """Return the number of directions, their channels and the states per channel."""
        return len(self.directions), self.out_proj.weight.shape[0], self.A_logs.shape[1]

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        x, *z = self.in_proj.apply_split(x, [self.out_proj.weight.shape[0]] if self.gated else [])
        y = self.out_norm(self.scan(jax.nn.silu(self.conv2d(x))))
        return self.out_proj(y * jax.nn.silu(z[0]) if z else y)

    def scan(self, x: Float[Array, "b h w e"]) -> Float[Array, "b h w e"]:
        """Compute the sum of the scans of a map in all directions."""
        h, w, inner = x.shape[1:]
        count, rank, d_state = len(self.directions), self.dt_projs_weight.shape[2], self.A_logs.shape[1]
        x_proj, dt_projs = self.x_proj_weight.astype(self.dtype), self.dt_projs_weight.astype(self.dtype)
        # Of all directions at once and before pixels are reordered, because each pixel is projected separately.
        projected = jnp.split(saveable(matmul(x, x_proj.reshape(-1, inner).T)), count, axis=-1)
        u = [direction.sequence(x) for direction in self.directions]
        dt, B, C = zip(
            *(
                jnp.split(direction.sequence(part), [rank, rank + d_state], axis=-1)
                for direction, part in zip(self.directions, projected, strict=True)
            ),
            strict=True,
        )
        delta = [saveable(matmul(part, weight.T)) for part, weight in zip(dt, dt_projs, strict=True)]
        lengths = [part.shape[1] for part in u]
        y = selective_scan(
            jnp.concatenate(pad_to_longest(u), axis=-1),
            jnp.concatenate(pad_to_longest(delta), axis=-1),
            -jnp.exp(self.A_logs[...]),
            jnp.stack(pad_to_longest(B), axis=2),
            jnp.stack(pad_to_longest(C), axis=2),
            self.Ds[...],
            delta_bias=self.dt_projs_bias.reshape(-1),
            delta_softplus=True,
            impl=self.impl,
        )
        parts = zip(self.directions, jnp.split(saveable(y), count, axis=-1), lengths, strict=True)
        maps = [direction.feature_map(part[:, :length], h, w) for direction, part, length in parts]
        return sum(maps if self.scan_gate is None else map(self._weight, maps))

    def _weight(self, x):
        b, h, w, e = x.shape
        return self.scan_gate(x.reshape(b, h * w, e)).reshape(b, h, w, e)
