"""Bilinear resizing and adaptive pooling of maps, without gathers, whose gradients are slow."""

from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from mambaout_jax.ops.sharding import spec_of, with_auto_axes


def resize_bilinear(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b ho wo c"]:
    """Resize maps to (ho, wo), without antialiasing.

    Pixel centers are aligned, not corners: `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`.
    """
    return _apply(x, *map(_bilinear_map, x.shape[1:3], size))


def adaptive_avg_pool(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b ho wo c"]:
    """Average (ho, wo) bins of maps, as PyTorch's `AdaptiveAvgPool2d`.

    Along an axis of n pixels, bin i of k has the pixels from floor(i n / k) to ceil((i + 1) n / k): bins overlap if k
    does not divide n, and repeat if n < k.
    """
    matrices = map(_pooling_matrix, x.shape[1:3], size)
    return _apply(x, *(partial(_multiply, matrix) for matrix in matrices))


def _apply(x, of_rows, of_columns):
    """Apply functions of (x, axis) to the rows and the columns of maps."""
    rows, _, _, channels = spec_of(x)
    return with_auto_axes(lambda x: of_columns(of_rows(x, 1), 2), x, out=PartitionSpec(rows, None, None, channels))


def _bilinear_map(old: int, new: int):
    if new % old == 0:
        return partial(_upsample, new // old)
    return partial(_multiply, _bilinear_matrix(old, new))


def _upsample(factor, x, axis):
    """Interpolate an axis at an integer factor, by sums of neighbors."""
    if factor == 1:
        return x
    first, last = jnp.split(x, [1], axis)[0], jnp.split(x, [x.shape[axis] - 1], axis)[1]
    before = jnp.concatenate([first, lax.slice_in_dim(x, 0, x.shape[axis] - 1, axis=axis)], axis)
    after = jnp.concatenate([lax.slice_in_dim(x, 1, x.shape[axis], axis=axis), last], axis)
    phases = []
    for phase in range(factor):
        offset = (phase + 0.5) / factor - 0.5
        neighbor = before if offset < 0 else after
        phases.append((1 - abs(offset)) * x + abs(offset) * neighbor)
    shape = (*x.shape[:axis], factor * x.shape[axis], *x.shape[axis + 1 :])
    return jnp.stack(phases, axis + 1).reshape(shape)


def _multiply(matrix, x, axis):
    matrix = jnp.asarray(matrix, x.dtype)
    form = "yh,bhwc->bywc" if axis == 1 else "xw,bhwc->bhxc"
    return jnp.einsum(form, matrix, x, preferred_element_type=jnp.float32).astype(x.dtype)


def _bilinear_matrix(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Build the matrix that interpolates one axis."""
    center = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.maximum(0, 1 - np.abs(center[:, None] - np.arange(old)))


def _pooling_matrix(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Build the matrix that averages the bins of one axis."""
    bins, pixels = np.arange(new)[:, None], np.arange(old)
    inside = (pixels >= bins * old // new) & (pixels < -(-(bins + 1) * old // new))
    return inside / inside.sum(1, keepdims=True)
