"""Rotary position embedding of a grid of patches.

Reference: github.com/baaivision/EVA, EVA-02/asuka/rope.py, as Vim and LocalMamba use it.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mambaout_jax.models.layers.position import resample_position_embedding

_THETA = 10000.0
# Positions are scaled to those of the grid of 224 px images in patches of 16 px.
_GRID = np.float32(14)


def rotate_patches(
    x: Float[Array, "b l d"], grid: tuple[int, int], table_grid: tuple[int, int]
) -> Float[Array, "b l d"]:
    """Apply rotary position embeddings to patches.

    Pairs of neighboring channels are rotated by angles proportional to the position of the patch. The first half of the
    channels has the angles of the row, the second half those of the column.

    Args:
        x: patches row by row; d is a multiple of 4.
        grid: rows and columns of patches.
        table_grid: rows and columns for which the cosines and sines of the angles are computed; they are interpolated
            for another grid.
    """
    cos, sin = (jnp.asarray(table)[None] for table in _tables(grid, table_grid, x.shape[-1]))
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    rotated = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
    return rotated.reshape(x.shape).astype(x.dtype)


@functools.lru_cache
def _tables(
    grid: tuple[int, int], table_grid: tuple[int, int], channels: int
) -> tuple[Float[np.ndarray, "l p"], Float[np.ndarray, "l p"]]:
    """Return cosine and sine of each patch (rows) and pair of channels, of the float32 angles of the reference."""
    half = channels // 2
    exponents = np.arange(0, half, 2, dtype=np.float32) / np.float32(half)
    rates = 1 / (_THETA ** exponents.astype(np.float64)).astype(np.float32)
    rows, columns = (
        np.arange(side, dtype=np.float32)[:, None] / np.float32(side) * _GRID * rates for side in table_grid
    )
    angles = np.concatenate(np.broadcast_arrays(rows[:, None], columns[None]), axis=-1).reshape(1, -1, half)
    cos, sin = (
        resample_position_embedding(table, grid, old_grid=table_grid, antialias=False)[0]
        for table in (np.cos(angles), np.sin(angles))
    )
    return cos, sin


def rotary_buffers(grid: tuple[int, int], table_grid: tuple[int, int], channels: int) -> dict[str, np.ndarray]:
    """Return the tables of the reference, with a value per channel, by their names there.

    Args:
        grid, table_grid: as in `rotate_patches`.
    """
    cos, sin = (np.repeat(table, 2, axis=1) for table in _tables(grid, table_grid, channels))
    return {"rope.freqs_cos": cos, "rope.freqs_sin": sin}
