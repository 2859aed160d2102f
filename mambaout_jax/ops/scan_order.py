"""Orders in which a sequence model reads a map.

A direction is row by row or column by column, forwards or backwards. Columns are a transpose, backwards is
`selective_scan(reverse=True)`: nothing is gathered.

Reference: row by row in both directions, Zhu et al., Vision Mamba, 2024; in all four, Liu et al., VMamba, 2024.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from jaxtyping import Array, Float


class Direction(NamedTuple):
    """Direction of a scan: by columns instead of rows, and from the last pixel to the first."""

    columns: bool
    reverse: bool


_ROWS = (Direction(columns=False, reverse=False), Direction(columns=False, reverse=True))
_COLUMNS = (Direction(columns=True, reverse=False), Direction(columns=True, reverse=True))

SCAN_ORDERS: Mapping[str, tuple[Direction, ...]] = MappingProxyType(
    {"causal": _ROWS[:1], "bidirectional": _ROWS, "cross": _ROWS + _COLUMNS}
)


def flatten_map(x: Float[Array, "b h w c"], *, columns: bool) -> Float[Array, "b l c"]:
    """Return the rows of a map, or its columns, as one sequence."""
    b, h, w, c = x.shape
    return (x.swapaxes(1, 2) if columns else x).reshape(b, h * w, c)


def unflatten_map(y: Float[Array, "b l c"], height: int, width: int, *, columns: bool) -> Float[Array, "b h w c"]:
    """Return the map of a sequence: the inverse of `flatten_map`."""
    b, _, c = y.shape
    return y.reshape(b, width, height, c).swapaxes(1, 2) if columns else y.reshape(b, height, width, c)
