"""Orders in which a sequence model reads a map.

A direction reads the rows of a map, or its columns, one after the other, forwards or backwards. Columns are a
transpose, and backwards is left to the scan (`selective_scan(reverse=True)`): nothing is gathered.

Reference: row by row in both directions, Zhu et al., Vision Mamba, 2024; in all four, Liu et al., VMamba, 2024.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from jaxtyping import Array, Float


class Direction(NamedTuple):
    """Say how a map is read: by columns instead of rows, and from its last pixel to its first."""

    columns: bool
    reverse: bool


_ROWS = (Direction(columns=False, reverse=False), Direction(columns=False, reverse=True))
_COLUMNS = (Direction(columns=True, reverse=False), Direction(columns=True, reverse=True))

SCAN_ORDERS: Mapping[str, tuple[Direction, ...]] = MappingProxyType(
    {"causal": _ROWS[:1], "bidirectional": _ROWS, "cross": _ROWS + _COLUMNS}
)


def flatten_map(x: Float[Array, "b h w c"], *, columns: bool) -> Float[Array, "b l c"]:
    """Lay the rows of a map, or its columns, end to end."""
    b, h, w, c = x.shape
    return (x.swapaxes(1, 2) if columns else x).reshape(b, h * w, c)


def unflatten_map(y: Float[Array, "b l c"], height: int, width: int, *, columns: bool) -> Float[Array, "b h w c"]:
    """Undo `flatten_map`."""
    b, _, c = y.shape
    return y.reshape(b, width, height, c).swapaxes(1, 2) if columns else y.reshape(b, height, width, c)
