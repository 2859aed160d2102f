"""Orders in which a sequence model scans a feature map.

A direction is row by row or column by column, forward or backward. Columns are a transpose and backward is a flip, so
that no gather is needed.

References: rows in both directions, Zhu et al., Vision Mamba, 2024; all four directions, Liu et al., VMamba, 2024.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


class Direction(NamedTuple):
    """Direction of a scan: by columns or by rows, from the last pixel (`reverse`) or from the first."""

    columns: bool
    reverse: bool

    def sequence(self, x: Float[Array, "b h w c"]) -> Float[Array, "b l c"]:
        """Return the pixels of a feature map in this order."""
        y = flatten_map(x, columns=self.columns)
        return jnp.flip(y, 1) if self.reverse else y

    def feature_map(self, y: Float[Array, "b l c"], height: int, width: int) -> Float[Array, "b h w c"]:
        """Return the feature map of a sequence: the inverse of `sequence`."""
        return unflatten_map(jnp.flip(y, 1) if self.reverse else y, height, width, columns=self.columns)


_ROWS = (Direction(columns=False, reverse=False), Direction(columns=False, reverse=True))
_COLUMNS = (Direction(columns=True, reverse=False), Direction(columns=True, reverse=True))

SCAN_ORDERS: Mapping[str, tuple[Direction, ...]] = MappingProxyType(
    {"causal": _ROWS[:1], "bidirectional": _ROWS, "cross": _ROWS + _COLUMNS}
)


def flatten_map(x: Float[Array, "b h w c"], *, columns: bool) -> Float[Array, "b l c"]:
    """Return the pixels of a feature map as one sequence, row by row or column by column."""
    b, h, w, c = x.shape
    return (x.swapaxes(1, 2) if columns else x).reshape(b, h * w, c)


def unflatten_map(y: Float[Array, "b l c"], height: int, width: int, *, columns: bool) -> Float[Array, "b h w c"]:
    """Return the feature map of a sequence: the inverse of `flatten_map`."""
    b, _, c = y.shape
    return y.reshape(b, width, height, c).swapaxes(1, 2) if columns else y.reshape(b, height, width, c)
