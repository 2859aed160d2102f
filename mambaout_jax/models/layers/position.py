"""Position embeddings and the size of images: checks, and resampling to another size."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from mambaout_jax.models.errors import ModelError


def resample_position_embedding(
    embedding: Float[np.ndarray, "1 l d"],
    grid: tuple[int, int],
    *,
    old_grid: tuple[int, int] | None = None,
    antialias: bool,
) -> Float[np.ndarray, "1 m d"]:
    """Compute learned position embeddings of patches of another grid by interpolation.

    Bicubic with half-pixel centers, like `torch.nn.functional.interpolate(mode="bicubic")`.

    Args:
        embedding: embeddings of the patches row by row.
        grid: target rows and columns of patches.
        old_grid: rows and columns of `embedding`; None for a square grid.
        antialias: as in PyTorch, where it also changes the kernel. True is the rule of `resample_abs_pos_embed` in timm
            1.0.31.

    Raises:
        ModelError: the number of patches does not match the old grid.
    """
    num_patches = embedding.shape[1]
    if old_grid is None:
        old_grid = (math.isqrt(num_patches),) * 2
    if math.prod(old_grid) != num_patches:
        raise ModelError(
            f"position embeddings have {num_patches} patches; expected {old_grid[0]}x{old_grid[1]}, the grid of the "
            "training images"
        )
    if old_grid == tuple(grid):
        return embedding
    matrix = _antialiased_matrix if antialias else _bicubic_matrix
    rows, columns = (matrix(*sizes) for sizes in zip(old_grid, grid, strict=True))
    patches = embedding[0].astype(np.float64).reshape(*old_grid, -1)
    patches = np.einsum("yh,xw,hwd->yxd", rows, columns, patches, optimize=True)
    return patches.reshape(1, math.prod(grid), -1).astype(embedding.dtype)


def resample_pos_embed(
    params: Mapping[tuple[str | int, ...], Any],
    shape: tuple[int, ...],
    grid: tuple[int, int],
    *,
    old_grid: tuple[int, int] | None,
    antialias: bool,
    class_positions: Callable[[int], Sequence[int]] = lambda length: (),
) -> dict[tuple[str | int, ...], Any]:
    """Return parameters with the patches of `pos_embed` resampled to a grid; all others are returned as they are.

    Args:
        params: arrays by path: all parameters of a model or some of them.
        shape: shape of the model's own `pos_embed`; without `old_grid`, embeddings of this shape are kept.
        grid, old_grid, antialias: as in `resample_position_embedding`.
        class_positions: function from the number of all tokens to the positions of class tokens among them.

    Raises:
        ModelError: the number of patches does not match the old grid.
    """
    embedding = params.get(("pos_embed",))
    if embedding is None or (old_grid is None and embedding.shape == shape):
        return dict(params)
    embedding = np.asarray(embedding)
    where = list(class_positions(embedding.shape[1]))
    patches = np.delete(embedding, where, axis=1)
    patches = resample_position_embedding(patches, grid, old_grid=old_grid, antialias=antialias)
    where_now = class_positions(patches.shape[1] + len(where))
    before = [position - count for count, position in enumerate(where_now)]  # numbers of patches
    return {**params, ("pos_embed",): np.insert(patches, before, embedding[:, where], axis=1)}


def check_image_size(images: Float[Array, "b h w i"], img_size: tuple[int, int]) -> None:
    """Check that images have the size that a model's position embeddings are for.

    Raises:
        ModelError: they have another size.
    """
    if images.shape[1:3] != img_size:
        raise ModelError(
            f"images are {images.shape[1]}x{images.shape[2]}; expected {img_size[0]}x{img_size[1]}, the img_size of "
            "the model and its position embeddings"
        )


def _antialiased_matrix(old_size: int, new_size: int) -> Float[np.ndarray, "m n"]:
    """Build the matrix that interpolates one axis with antialiasing.

    The kernel is that of Pillow, a = -0.5, widened by the downsampling factor, truncated at the edges and normalized.
    """
    scale = old_size / new_size
    center = (np.arange(new_size)[:, None] + 0.5) * scale
    weights = _cubic((np.arange(old_size) + 0.5 - center) / max(scale, 1.0), -0.5)
    return weights / weights.sum(1, keepdims=True)


def _bicubic_matrix(old_size: int, new_size: int) -> Float[np.ndarray, "m n"]:
    """Build the matrix that interpolates one axis without antialiasing.

    The kernel is that of PyTorch, a = -0.75; beyond the edges it reads the values at the edges.
    """
    center = (np.arange(new_size)[:, None] + 0.5) * (old_size / new_size) - 0.5
    neighbors = np.floor(center).astype(int) + np.arange(-1, 3)
    weights = np.zeros((new_size, old_size))
    where = np.arange(new_size)[:, None], neighbors.clip(0, old_size - 1)
    np.add.at(weights, where, _cubic(neighbors - center, -0.75))
    return weights


def _cubic(x: Float[np.ndarray, "m n"], a: float) -> Float[np.ndarray, "m n"]:
    """Compute the cubic convolution kernel. Reference: Keys, 1981."""
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
