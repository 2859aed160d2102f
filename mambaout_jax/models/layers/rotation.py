"""Rotary position embedding of a grid of patches.

Reference: github.com/baaivision/EVA, EVA-02/asuka/rope.py, as Vim and LocalMamba use it.
"""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_THETA = 10000.0
# Positions are scaled to those of the grid of 224 px images in patches of 16 px.
_GRID = np.float32(14)


def rotate_patches(x: Float[Array, "b l d"], grid: tuple[int, int]) -> Float[Array, "b l d"]:
    """Rotate each pair of neighboring channels by an angle that is proportional to the position of the patch.

    The first half of the channels has the angles of the row, the second half those of the column.

    Args:
        x: patches row by row; d is a multiple of 4.
        grid: rows and columns of patches.
    """
    cos, sin = (jnp.asarray(table)[None] for table in _tables(grid, x.shape[-1]))
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    rotated = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
    return rotated.reshape(x.shape).astype(x.dtype)


@functools.lru_cache
def _tables(grid: tuple[int, int], channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return cosine and sine of each patch (rows) and pair of channels, of the float32 angles of the reference."""
    half = channels // 2
    exponents = np.arange(0, half, 2, dtype=np.float32) / np.float32(half)
    rates = 1 / (_THETA ** exponents.astype(np.float64)).astype(np.float32)
    rows, columns = (np.arange(side, dtype=np.float32)[:, None] / np.float32(side) * _GRID * rates for side in grid)
    angles = np.concatenate(np.broadcast_arrays(rows[:, None], columns[None]), axis=-1).reshape(-1, half)
    return np.cos(angles), np.sin(angles)


def rotary_buffers(options: Mapping[str, Any], keys: Iterable[str]) -> dict[str, np.ndarray]:
    """Return the tables of the reference, with a value per channel, for `KeyFormat.buffers`."""
    if not options["rope"]:
        return {}
    grid = tuple(side // options["patch_size"] for side in options["img_size"])
    cos, sin = (np.repeat(table, 2, axis=1) for table in _tables(grid, options["embed_dim"]))
    return {"rope.freqs_cos": cos, "rope.freqs_sin": sin}
